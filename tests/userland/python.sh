# python: `python3 -m test` on the modules about numbers: the verdict of each test.
# packages: python3,PYTHON-testsuite
# Left out: tests that compare times (a guest is slower), and tests of a second and more each that try more of the
# same numbers.
modules='test_math test_cmath test_float test_complex test_int test_long test_fractions test_decimal test_statistics
test_struct test_array test_random test_hashlib test_zlib test_strtod test_numeric_tower test_bigmem
test_abstract_numbers test_pow test_format'
[ "$quick" = 0 ] || modules='test_cmath test_float test_fractions test_strtod test_numeric_tower'
ignored=''
for pattern in '*denial_of_service*' '*test_float_sqrt_of_frac' '*test_inv_cdf' '*test_correctly_rounded_true_division' \
    '*test_free_after_iterating' '*test_weakref' '*test_bug_9025' '*test_overlap' '*test_big_compress_buffer' \
    '*test_pbkdf2_hmac_py' '*test_scrypt' '*test_pickle' '*testFsum' '*test_bignum' '*test_big_exp' '*test_bit_length' \
    '*testRemainder' '*testDist' '*test_prod' '*test_negative_exponent' '*test_bitop_identities' '*test_choices_algorithms' \
    '*test_threaded_hashing' '*StructTest.test_integers' '*test_autoseed' '*test_cleans_up_at_runtime_shutdown' '*IntStrDigitLimits*'; do
    ignored="$ignored -i $pattern"
done
[ "$quick" = 0 ] || ignored="$ignored -i *test_boundaries -i *test_truediv -i *test_parsing"
set -f
# shellcheck disable=SC2086
python3 -m test --junit-xml tests.xml $ignored $modules > log 2>&1
echo "python3 -m test: $?"
sed 's/^/# /' log
python3 - << 'END_OF_PROGRAM'
import xml.etree.ElementTree
for case in xml.etree.ElementTree.parse("tests.xml").iter("testcase"):
    verdict = case.get("result") + "".join(" " + child.tag for child in case)
    print(case.get("name"), case.get("status"), verdict)
END_OF_PROGRAM
