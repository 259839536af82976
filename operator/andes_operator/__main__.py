"""``python -m andes_operator``."""

if __name__ == "__main__":  # the what-if's process imports this file too
    from andes_operator.cli import main

    raise SystemExit(main())
