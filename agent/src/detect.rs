//! Pure: the first bytes of a connection in, `Http2`, `Opaque` or `NeedMore` out.
