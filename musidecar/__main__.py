"""`python -m musidecar` is the command `musidecar`."""

from musidecar.cli import main

if __name__ == "__main__":
    main(prog_name="musidecar")
