"""Run-to-completion code: `task(main)`."""
