//! Pure balancing: the endpoints of one Service with their load, and `pick`.
