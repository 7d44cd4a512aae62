"""The subcommands of `gtpo`, one per module, each with `main(argv) -> int`. A module is imported when it is needed."""
