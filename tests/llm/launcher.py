"""`nvcf-worker llm` with the arguments of LLM_ARGUMENTS, one a line."""

import os

from nvcf_worker.llm_command import main

main(os.environ["LLM_ARGUMENTS"].splitlines())
