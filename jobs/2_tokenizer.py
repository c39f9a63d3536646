import sys

from lspm_ray.cli import main

main(["tokenizer", *sys.argv[1:]])
