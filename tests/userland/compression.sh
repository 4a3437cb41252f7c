# compression: zstd, xz, gzip, bzip2 and lz4 at several levels over libraries, zeros and text: checksums of what they
# make, and whether it comes back.
# packages: zstd,xz-utils,gzip,bzip2,lz4
set -e
libc=/usr/lib/x86_64-linux-gnu/libc.so.6
if [ "$quick" = 1 ]; then part=100000; else part=400000; fi
{
    head -c $part $libc
    head -c 70001 /dev/zero
    tail -c +900000 $libc | head -c $part
    seq 1 7000
} > corpus
sha256sum < corpus

round() {
    name=$1
    shift
    "$@" -c < corpus > packed
    echo "$name $* $(wc -c < packed) $(sha256sum < packed | cut -c1-32) $("$name" -dc < packed | sha256sum | cut -c1-16)"
}
if [ "$quick" = 1 ]; then
    round zstd zstd -q -1
    round zstd zstd -q -7
    round xz xz -1 -T1 --check=crc64
    round lz4 lz4 -q -9
    round gzip gzip -n -6
    round bzip2 bzip2 -1
    exit
fi
for level in 1 3 5 7 9 12 16 19; do round zstd zstd -q -$level --single-thread; done
round zstd zstd -q --fast=5 --single-thread
round zstd zstd -q --long=24 -6 --single-thread
for level in 0 3 6 9e; do round xz xz -$level -T1; done
round xz xz -T1 --check=sha256 --x86 --lzma2=preset=1
round xz xz -T1 --check=crc64 --delta=dist=4 --lzma2=preset=1,lc=0,lp=2,pb=4
for level in 1 6 9; do round gzip gzip -n -$level; done
for level in 1 9; do round bzip2 bzip2 -$level; done
for level in 1 3 9 12; do round lz4 lz4 -q -$level; done
# zstd's own benchmark checks what it decompresses; the compressed size is a result, the speed is not.
zstd -b3 -i0 corpus 2>&1 | tr '\r' '\n' | sed -n 's/.*: *\([0-9]*\) -> *\([0-9]*\) .*/zstd -b3 \1 \2/p' | sort -u
zstd -q --train -B2000 --maxdict=8000 -o dictionary corpus
sha256sum < dictionary
