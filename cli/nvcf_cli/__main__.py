"""`python -m nvcf_cli` is the same as `nvcf`."""

from nvcf_cli.main import main

if __name__ == "__main__":
    main()
