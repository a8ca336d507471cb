//! The environment of this process, which its children inherit.

/// Sets or removes a variable. Like `setenv`, it must not run while another thread looks into the environment.
pub fn set(name: &str, value: Option<&str>) {
    match value {
        // SAFETY: `prctl(PR_SET_MEMORY_MERGE)` is documented as a call that changes the environment.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
}
