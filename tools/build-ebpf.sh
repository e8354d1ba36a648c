#!/bin/sh
# Builds the BPF object from its source: tools/build-ebpf.sh [OUTPUT]
# The object is part of the repository, so that no node and no installation needs a compiler. The
# result depends on clang's version and on nothing else: no debug information, no paths, no dates.
# A test builds it again and compares the instructions.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
source=$here/pyflannel/datapath/ebpf/flannel.bpf.c
output=${1:-$here/pyflannel/datapath/ebpf/flannel.bpf.o}
exec "${CLANG:-clang}" -target bpf -mcpu=v3 -O2 -g0 -Wall -Wextra -Werror \
    -isystem "/usr/include/$(uname -m)-linux-gnu" -c "$source" -o "$output"
