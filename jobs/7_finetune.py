import sys

from lspm_ray.cli import main

main(["finetune", *sys.argv[1:]])
