"""``python -m andes_operator``: ``andes operator``."""

if __name__ == "__main__":  # the what-if's process imports this file too
    import sys

    from andes_sglang.cli import main

    raise SystemExit(main(["operator", *sys.argv[1:]]))
