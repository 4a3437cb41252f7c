# openssl: digests, ciphers, signatures and key exchange over fixed data, each with the processor as it is and with
# vector units hidden from OpenSSL (OPENSSL_ia32cap), and `openssl speed` to its end.
# packages: openssl,python3
# files: openssl.py
# The keys are made for this test and protect nothing.
set -e
cat > rsa.pem <<'KEY'
-----BEGIN RSA PRIVATE KEY-----
MIIEowIBAAKCAQEAsqLvA7Xj/Z0dCWjngzXQzkF4iUaxDw8r7ioTr/9vBSX8jwij
VBOYJCsd9KM2ndtqvitVrtIuKnB2MV/XVHvxuLdRC3eHDtqQ92W/OLOG9UoyCjYK
Q3j4VYZa8XLclb2WAmP5MD2D5eqhvBOicqjD54TmnIIWLg/HsFT2V5+wGOPfyx9p
tZgSMhrIlbWTfMfnyH0fw4H+P0MsMAGqjXFK5kEZrn/rENdKU3pZvRR2yOgiLsj2
kls5ErMUNWWdytkBJFFokzoIXGAwQdpruxrv3nNwHWDSjdJFDWa2PUoif4m4P33m
Kna7qbHfhfTYKbjUJdKUGtHL4tWU/lzjjhoi9wIDAQABAoIBACvCSfaIuf7IW/KQ
JhY4Opwr4ZEPJhRgTQycdhIo6lNCiOmo3gmceypw/XeN+7UTqMRI7UZT6kcvIWTa
626gpgfvsAS1FPqIg/Z2kC8dmzO/Jx7lOgJpQbwBm4mF748mz/Zp8wLkLslFfrUJ
wkOAH+042xz/qNtDtlD1nxq73XFbB/H/HUt7tR8iCM2TEkzm8R5f3szFGVsQQR9E
lAsAIrggysC/rjSC//hGwsWWutXdIUOK4fqInqmbCNjBxfd3upNtugm3ggOSK3Gt
3ixfuw8XrHqSjwU6Ygdj8NhlwaxfhBhm4rbjzZWgSeWxCowB2egEKE97wZqiJ7OZ
w3+4QsECgYEA4OZ/KB910lKK+PHnoBWbtHUCnW05opmrwU3SEfi+t/6eZxDzrb/8
TdcqY0UY39E0BRaZwl4WHwEmat9EpXj+xjVcUoxmwibFFwzqLG1Ef9T1d7uhUk/P
/N5uxyoFvrfF1So8yVnFQCFVCJTJq9naCotnAuzX8Kqrhb93dZ2BhCcCgYEAy1aw
Jl9sImxZHeDI4cRXozckcd7QwncZP5TR4BcaQqjQvHo8bfsDi7Gf7p4aIsY1CVel
2eTxrylo5yWspaKLhOe+r6k6e3PTLlJrANreAVNX1XSs8jJxBit+Ihj/iHRZAh2Y
MVuDMvyUmFZxnpj2EgBAYS/zx4kcZ37pp1KKnLECgYEAkYQSGj/g2CkYSmMa33Wb
vXNIMdwOQqrzequDlKVBoYNZso5BXNavxR3HC1wV8BtIcVJiQmTmI0F3PgcgP4C+
ODkmdzLo+g5jz7pHel9oxt1fxgzdIIkLpi21t5/0/6Wgl4AwvIcdHZVzk43RvyPB
9Lil+jqMred/+5YbETrMJlkCgYBetJV+idsXfVdUbymg3Y3j2v8CekDJEieUUYAe
2yPEAFSYNGaI4uyX17chsEmEAMUbANOiVNusNaFCZ22uB7Lrx/QsZKl0blHhtUlZ
MJdODr9OD/WtKIkz0nYA85uwtl/ueFI2SuUkjje3bCunLp8Na0iQ+4CTYuzz10yE
PhGJQQKBgHIzMY07RnKWWpDdUedHL67ReKIwHucKOIYEK+3GJHaoA6Z6G/LwAy4B
burRzfImnuwJd3eN0hSBFm6wWnJvWJtEOmwREeddexqK5vAsLcnSvh8mW/hTmUkz
m405rDpIxWvz4pYfUf9wCdfLvMfb0EBOePofDOwhqkEV39HhUf2T
-----END RSA PRIVATE KEY-----
KEY
cat > p256.pem <<'KEY'
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEILQNWHolEIUCB7I7BXus+fRe6zISda7Ef+j8InswFuKsoAoGCCqGSM49
AwEHoUQDQgAE3PQZOXRCp4YuhZGTWaV1vVDpTNym1BRHbPv5NzLiZVRKT3XxLmml
Tvx8+5BKiC2EbqaZBVeT9knptpxw07tmMw==
-----END EC PRIVATE KEY-----
KEY
cat > p384.pem <<'KEY'
-----BEGIN EC PRIVATE KEY-----
MIGkAgEBBDBTJCXJPBEJY2aPDEKZwW72LhQRF/g+FB3GTlSa56Yl9sYuNu+35Hms
lXpZxEVry1OgBwYFK4EEACKhZANiAAQci76gVYKiS9myKqyxt7OAG0cKXZPOvZRX
8bPAiYU8jOpviAGoWIqWykWOA5JXg60NMtOWJe7kgoUfUILONaHWFMsMY5EG/ChF
hZsMSaUDeERbuoj7wiUL/KOw+3HPWUU=
-----END EC PRIVATE KEY-----
KEY

# Name and value: leaf 1's ECX and EDX in the first number, leaf 7's ECX and EBX in the second; ~ takes bits away.
# The bits that matter: AVX-512 with VAES, VPCLMULQDQ and GFNI; then all of leaf 7 (AVX2, SHA, ADX, BMI2); then AVX,
# FMA, XOP; then AES-NI and PCLMULQDQ, which leaves SSSE3; then everything.
settings='all= avx2=:~0x74edc230000 avx=:~0xffffffffffffffff aesni=~0x1800180000000000:~0xffffffffffffffff
ssse3=~0x1a00180200000000:~0xffffffffffffffff none=0x0:0x0'
[ "$quick" = 0 ] || settings='all= ssse3=~0x1a00180200000000:~0xffffffffffffffff'

head -c 50021 /usr/lib/x86_64-linux-gnu/libcrypto.so.3 > data
for setting in $settings; do
    name=${setting%%=*}
    value=${setting#*=}
    if [ -n "$value" ]; then export OPENSSL_ia32cap="$value"; else unset OPENSSL_ia32cap; fi
    python3 -I -S openssl.py "$name" "$quick"
    # RSA's PKCS #1 signature is a function of key and data; ECDSA's is not, and is verified instead.
    echo "$name rsa $(openssl dgst -sha256 -sign rsa.pem data | openssl md5 -r)"
    [ "$quick" = 0 ] || [ "$name" = all ] || continue
    openssl dgst -sha256 -sign rsa.pem -sigopt rsa_padding_mode:pss -out signature data
    echo "$name rsa-pss $(openssl dgst -sha256 -prverify rsa.pem -sigopt rsa_padding_mode:pss -signature signature data)"
    for curve in p256 p384; do
        openssl dgst -sha384 -sign $curve.pem -out signature data
        echo "$name $curve $(openssl dgst -sha384 -prverify $curve.pem -signature signature data)"
        openssl pkey -in $curve.pem -pubout -out $curve.pub
        openssl pkeyutl -derive -inkey $curve.pem -peerkey $curve.pub -out shared
        echo "$name $curve $(openssl md5 -r shared)"
    done
done
unset OPENSSL_ia32cap

# Only the rows' names are a result: a table that is complete.
speed() {
    openssl speed -seconds 1 "$@" > table 2> speed-errors
    grep -v -e '^version:' -e '^built on:' -e '^options:' -e '^compiler:' -e '^CPUINFO:' -e '^The ' -e '^type' table |
        sed 's/^ *\([^ ]*  *bits  *[^ ]*\|[^ ]*\).*/speed \1 ran/'
    sed 's/^/# /' table
}
if [ "$quick" = 1 ]; then
    speed -bytes 1024 sha256
    speed -bytes 1024 -evp aes-128-gcm
else
    speed -bytes 1024 md5 sha1 sha256 sha512 ghash aes-128-cbc camellia-256-cbc rmd160
    for cipher in aes-128-gcm aes-256-ctr aes-256-xts chacha20-poly1305 aes-128-cbc-hmac-sha256 sha3-256 blake2b512; do
        speed -bytes 8192 -evp $cipher
    done
    speed rsa2048 ecdsap256 ecdhx25519 ed25519
fi
