//! The program: everything is in the library.

fn main() -> std::process::ExitCode {
    swamp_mount::cli::main()
}
