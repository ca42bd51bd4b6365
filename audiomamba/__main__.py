"""Run the command line as `python -m audiomamba`."""

from audiomamba.cli import main

if __name__ == "__main__":
    main()
