//! The memory allocator for programs that train on the CPU.
//!
//! Every operation of a step makes its result anew. This allocator hands the same memory out again, and
//! [`keep_memory`] has it keep what is free: else it gives large blocks back to the system and gets them again page by
//! page, which costs more than a quarter of a step.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: lowbit_kernels::allocator::Allocator = lowbit_kernels::allocator::Allocator;
//!
//! // First in `main`:
//! lowbit_kernels::allocator::keep_memory();
//! ```

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc's C interface, which its Rust one does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps memory that is free for the program, which then holds as much as it ever needed at once.
pub fn keep_memory() {
    // SAFETY: sets an integer; -1 is the documented value for never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}
