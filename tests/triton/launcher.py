"""`nvcf-worker triton` with the arguments of TRITON_ARGUMENTS, one a line."""

import os

from nvcf_worker.triton_command import main

main(os.environ["TRITON_ARGUMENTS"].splitlines())
