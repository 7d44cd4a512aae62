"""`python -m gtpo COMMAND`, the same as `gtpo COMMAND`."""

from gtpo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
