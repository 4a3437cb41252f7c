# strings: glibc's string, memory and mathematical functions, each variant that the processor allows, chosen with
# GLIBC_TUNABLES: AVX-512, EVEX, AVX2, SSSE3, SSE2, with and without REP MOVSB, with non-temporal stores early.
# packages: python3
# files: strings.py
set -e
caps() {
    echo "glibc.cpu.hwcaps=$1"
}
avx512=-AVX512F,-AVX512VL,-AVX512BW
avx2=$avx512,-AVX2,-AVX,-AVX_Fast_Unaligned_Load,-FMA,-FMA4
run() {
    GLIBC_TUNABLES="$2" python3 -I -S strings.py "$1" "$quick"
}
run default ""
run avx2 "$(caps $avx512)"
run sse2 "$(caps $avx2,-SSSE3,-SSE4_1,-SSE4_2,-ERMS,-FSRM,-BMI2,-POPCNT,-LZCNT)"
[ "$quick" = 0 ] || exit 0
run evex "$(caps -AVX512F)"
run avx512-no-vzeroupper "$(caps -AVX512VL)"
run no-erms "$(caps -ERMS,-FSRM)"
run sse42 "$(caps $avx2)"
run ssse3 "$(caps $avx2,-Fast_Unaligned_Copy,-SSE4_2)"
run non-temporal "glibc.cpu.x86_non_temporal_threshold=0x4040"
run non-temporal-avx2 "$(caps $avx512):glibc.cpu.x86_non_temporal_threshold=0x4040"
run rep-movsb "glibc.cpu.x86_rep_movsb_threshold=0x200:glibc.cpu.x86_rep_stosb_threshold=0x200"
