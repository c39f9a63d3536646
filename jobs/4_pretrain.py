import sys

from lspm_ray.cli import main

main(["pretrain", *sys.argv[1:]])
