//! bpf(2) for what aya has no words for. In: a command and its attributes; out: what the kernel wrote into them.

use std::io;

/// One call. The kernel takes attributes that are shorter than its own as if zeros followed.
///
/// # Safety
/// `attributes` is laid out as `command` reads it (`union bpf_attr` of linux/bpf.h), and every address in it is of memory
/// that outlives the call and has the size that stands beside it.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<()> {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: pointer and size are of one living value; the rest is the caller's promise.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
