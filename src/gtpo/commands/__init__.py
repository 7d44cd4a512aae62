"""The subcommands of `gtpo`, one a module, each with `main(argv) -> int`. Imported only when asked for."""
