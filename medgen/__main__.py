"""`python -m medgen`, for launchers such as torchrun."""

from medgen.cli.main import main

if __name__ == "__main__":
    main()
