# ffmpeg: pictures and sound made, scaled, filtered, encoded and decoded, with the processor as it is and with vector
# units hidden (-cpuflags): checksums of every packet and frame. One thread each, so that the order is fixed.
# packages: ffmpeg
broken=0
f() {
    name=$1
    shift
    result=$(ffmpeg -nostdin -hide_banner -loglevel error -threads 1 -filter_threads 1 "$@" -bitexact -f md5 - 2>&1) || broken=1
    echo "$name $result"
}
size=128x96
picture="-f lavfi -i testsrc2=size=$size:rate=10:duration=1"
sound='-f lavfi -i sine=frequency=440:beep_factor=4:sample_rate=44100:duration=1'
set -f
# These have detection of their own, which -cpuflags does not reach.
# shellcheck disable=SC2086
[ "$quick" = 1 ] || {
    # A positive -cpu-used would let VP8's encoder choose by the clock.
    f vpx $picture -frames:v 3 -c:v libvpx -deadline realtime -cpu-used -8 -threads 1
    f vp9 $picture -frames:v 2 -c:v libvpx-vp9 -deadline realtime -cpu-used 8 -threads 1
    f x265 $picture -frames:v 3 -c:v libx265 -preset ultrafast -x265-params pools=none:frame-threads=1:log-level=none:info=0
    f mp3 $sound -t 0.3 -c:a libmp3lame
    f opus $sound -t 0.3 -ar 48000 -c:a libopus
    f webp $picture -frames:v 1 -c:v libwebp
    ffmpeg -nostdin -loglevel error $picture -frames:v 2 -c:v libaom-av1 -cpu-used 8 -usage realtime -threads 1 -bitexact -y film.mkv
    f av1-encode -i film.mkv -c:v copy
    f av1-decode -c:v libdav1d -i film.mkv -c:v rawvideo
}

variants='all avx2 ssse3 none'
[ "$quick" = 0 ] || variants='all ssse3'
for variant in $variants; do
    case $variant in
        all) flags='' ;;
        avx2) flags='-cpuflags mmx+mmxext+sse+sse2+sse3+ssse3+sse4.1+sse4.2+avx+avx2+fma3+bmi1+bmi2' ;;
        ssse3) flags='-cpuflags mmx+mmxext+sse+sse2+sse3+ssse3' ;;
        none) flags='-cpuflags 0' ;;
    esac
    # shellcheck disable=SC2086
    {
        f "$variant scale" $flags $picture -frames:v 4 -vf scale=256x192:flags=lanczos,format=rgb24,scale=100x80:flags=bicubic,format=yuv420p10le -c:v rawvideo
        f "$variant x264" $flags $picture -frames:v 4 -c:v libx264 -preset medium -threads 1 -g 5
        f "$variant mpeg4" $flags $picture -frames:v 4 -c:v mpeg4 -threads 1 -qscale:v 5
        f "$variant aac" $flags $sound -t 0.3 -c:a aac -b:a 96k
        f "$variant flac" $flags $sound -t 0.5 -c:a flac
        [ "$quick" = 0 ] || continue
        f "$variant filters" $flags $picture -frames:v 4 -vf gblur=2,hqdn3d,unsharp,yadif,eq=contrast=1.2 -c:v rawvideo
        f "$variant resample" $flags $sound -t 0.5 -af aresample=48000,volume=0.7,aecho -c:a pcm_f32le
        f "$variant mjpeg" $flags $picture -frames:v 3 -c:v mjpeg -threads 1
        f "$variant ffv1" $flags $picture -frames:v 3 -c:v ffv1 -threads 1
        ffmpeg -nostdin -loglevel error $flags $picture -frames:v 3 -c:v libx264 -preset fast -threads 1 -bitexact -y film.mp4
        f "$variant h264-decode" $flags -i film.mp4 -c:v rawvideo
        ffmpeg -nostdin -loglevel error $flags $picture -frames:v 4 -c:v mpeg4 -threads 1 -bitexact -y film.avi
        f "$variant mpeg4-decode" $flags -i film.avi -c:v rawvideo
    }
done
exit $broken
