/* What a program can do to KVM's descriptors beside KVM's ioctls: every line says what was asked and what came of it. For
   tests/tests/exec_descriptors.rs, which has the same asked of the kernel's KVM, where there is one, and of softkvm exec. Results
   are printed, not judged; what differs from kernel to kernel for reasons that are not KVM's is not asked. */
#include "vmm.h"
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <termios.h>

static sigjmp_buf back;
static struct vm the;
static int scratch, pipes[2];
static char buffer[8192];
/* Not for the compiler to warn of. */
static void *volatile nowhere = (void *)8;
static volatile int negative = -1;

static void fault(int signal)
{
    siglongjmp(back, signal);
}

static const char *name_of(int error)
{
    static char number[16];
    const char *name = strerrorname_np(error);
    snprintf(number, sizeof number, "%d", error);
    return name ? name : number;
}

/* One line: who was asked what, and the answer. */
static void say(const char *who, const char *what, long r)
{
    if (r == -1)
        printf("%s %s = -1 %s\n", who, what, name_of(errno));
    else
        printf("%s %s = %ld\n", who, what, r);
}

#define ASK(call) (errno = 0, say(who, #call, (long)(call)))
/* The same for a number that differs from run to run. */
#define ASK_IF(call) (errno = 0, say(who, #call, (call) < 0 ? -1 : 0))

/* The permissions of /dev/kvm are the administrator's. */
static unsigned mode(unsigned mode)
{
    return S_ISCHR(mode) ? mode & S_IFMT : mode;
}

/* Reads, or reads and writes, a byte; the signal that it cost. */
static int touch(volatile unsigned char *at, int write)
{
    int signal = sigsetjmp(back, 1);
    if (signal)
        return signal;
    unsigned char byte = *at;
    if (write)
        *at = byte;
    return 0;
}

static void transfers(const char *who, int fd)
{
    struct iovec v[2] = {{buffer, 4}, {buffer + 4, 4}};
    off_t at = 0, to = 0;
    ASK(read(fd, buffer, 0));
    ASK(read(fd, nowhere, 8));
    ASK(read(fd, buffer, 8));
    ASK(lseek(fd, 0, SEEK_CUR));
    ASK(pread(fd, buffer, 8, 0));
    ASK(pread(fd, buffer, 8, -1));
    ASK(readv(fd, v, 2));
    ASK(readv(fd, v, negative));
    ASK(preadv(fd, v, 2, 0));
    ASK(preadv2(fd, v, 2, 0, 0));
    ASK(preadv2(fd, v, 2, -1, RWF_NOWAIT));
    ASK(write(fd, buffer, 0));
    ASK(write(fd, nowhere, 8));
    ASK(write(fd, buffer, 8));
    ASK(pwrite(fd, buffer, 8, 0));
    ASK(pwrite(fd, buffer, 8, -1));
    ASK(writev(fd, v, 2));
    ASK(pwritev(fd, v, 2, 0));
    ASK(pwritev2(fd, v, 2, 0, 0));
    ASK(syscall(SYS_read, fd, buffer, 8));
    ASK(syscall(SYS_write, fd, buffer, 8));
    ASK(sendfile(scratch, fd, 0, 8));
    ASK(sendfile(scratch, fd, &at, 8));
    ASK(sendfile(fd, scratch, &at, 8));
    ASK(splice(fd, 0, pipes[1], 0, 8, SPLICE_F_NONBLOCK));
    ASK(splice(fd, &at, pipes[1], 0, 8, SPLICE_F_NONBLOCK));
    CHECK(write(pipes[1], buffer, 8) == 8);
    ASK(splice(pipes[0], 0, fd, 0, 8, SPLICE_F_NONBLOCK));
    ASK(tee(fd, pipes[1], 8, SPLICE_F_NONBLOCK));
    ASK(vmsplice(fd, v, 1, SPLICE_F_NONBLOCK));
    ASK(copy_file_range(fd, &at, scratch, &to, 8, 0));
    ASK(copy_file_range(scratch, &at, fd, &to, 8, 0));
    while (read(pipes[0], buffer, sizeof buffer) > 0)
        ;
}

static void places(const char *who, int fd)
{
    ASK(lseek(fd, 0, SEEK_SET));
    ASK(lseek(fd, 4096, SEEK_SET));
    ASK(lseek(fd, -1, SEEK_SET));
    ASK(lseek(fd, 0, SEEK_END));
    ASK(lseek(fd, 0, SEEK_DATA));
    ASK(lseek(fd, 0, SEEK_HOLE));
    ASK(lseek(fd, 0, 9));
    ASK(lseek(fd, 0, SEEK_CUR));
    ASK(ftruncate(fd, 0));
    ASK(ftruncate(fd, 1 << 20));
    ASK(ftruncate(fd, -1));
    ASK(fallocate(fd, 0, 0, 4096));
    ASK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096));
    ASK(posix_fallocate(fd, 0, 4096));
    ASK(fsync(fd));
    ASK(fdatasync(fd));
    ASK(sync_file_range(fd, 0, 4096, SYNC_FILE_RANGE_WRITE));
    ASK(readahead(fd, 0, 4096));
    ASK(posix_fadvise(fd, 0, 4096, POSIX_FADV_DONTNEED));
    ASK(posix_fadvise(fd, 0, 4096, 77));
}

static void files(const char *who, int fd)
{
    struct stat s;
    struct statx x;
    struct statfs f;
    char path[64], link[64] = "";
    CHECK(fstat(fd, &s) == 0);
    printf("%s fstat = mode %o size %ld blocks %ld nlink %ld rdev %x:%x block %ld\n", who, mode(s.st_mode), (long)s.st_size,
        (long)s.st_blocks, (long)s.st_nlink, major(s.st_rdev), minor(s.st_rdev), (long)s.st_blksize);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(stat(path, &s) == 0);
    printf("%s stat of /proc = mode %o size %ld rdev %x:%x\n", who, mode(s.st_mode), (long)s.st_size, major(s.st_rdev), minor(s.st_rdev));
    CHECK(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &x) == 0);
    printf("%s statx = mode %o size %ld rdev %x:%x\n", who, mode(x.stx_mode), (long)x.stx_size, x.stx_rdev_major, x.stx_rdev_minor);
    struct stat event;
    int e = eventfd(0, 0);
    CHECK(fstat(e, &event) == 0 && fstat(fd, &s) == 0);
    printf("%s is the inode of all anonymous files = %d\n", who, s.st_dev == event.st_dev && s.st_ino == event.st_ino);
    close(e);
    CHECK(fstatfs(fd, &f) == 0);
    printf("%s fstatfs = type %s\n", who, f.f_type == 0x09041934 ? "ANON_INODE_FS_MAGIC" : "another");
    errno = 0;
    CHECK(readlink(path, link, sizeof link - 1) > 0);
    printf("%s readlink = %s\n", who, link);
    char shorter[8] = "";
    printf("%s readlink into 7 bytes = %ld %s\n", who, (long)readlink(path, shorter, 7), shorter);
    ASK(fchdir(fd));
    ASK(isatty(fd));
    ASK(fcntl(fd, F_GETFL));
    ASK(fcntl(fd, F_GETFD));
    ASK(fcntl(fd, F_SETFD, 0));
    ASK(fcntl(fd, F_GETFD));
    ASK(fcntl(fd, F_SETFD, FD_CLOEXEC));
    ASK(fcntl(fd, F_SETFL, O_NONBLOCK));
    ASK(fcntl(fd, F_GETFL));
    ASK(fcntl(fd, F_SETFL, O_NONBLOCK | O_APPEND));
    ASK(fcntl(fd, F_GETFL));
    ASK(fcntl(fd, F_SETFL, O_DIRECT));
    ASK(fcntl(fd, F_SETFL, O_ASYNC));
    ASK(fcntl(fd, F_GETFL));
    ASK(fcntl(fd, F_SETFL, 0));
    ASK(fcntl(fd, F_GETFL));
    ASK(fcntl(fd, F_GETOWN));
    ASK(fcntl(fd, F_GETSIG));
    ASK(fcntl(fd, F_GET_SEALS));
    ASK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    ASK(fcntl(fd, F_GETPIPE_SZ));
    ASK(fcntl(fd, F_GETLEASE));
    ASK(fcntl(fd, F_NOTIFY, DN_ACCESS));
    ASK(fcntl(fd, 4711));
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    ASK(fcntl(fd, F_GETLK, &lock));
    ASK(flock(fd, LOCK_SH | LOCK_NB));
    ASK(flock(fd, LOCK_EX | LOCK_NB));
    ASK(flock(fd, LOCK_UN));
    ASK(flock(fd, 77));
    ASK_IF(dup(fd));
    ASK_IF(fcntl(fd, F_DUPFD, 100));
    int other = fcntl(fd, F_DUPFD_CLOEXEC, 100);
    CHECK(other >= 100);
    ASK(fcntl(other, F_GETFD));
    ASK(read(other, buffer, 8));
    ASK(close(other));
    ASK(read(other, buffer, 8));
    ASK(dup2(fd, 200));
    ASK(fcntl(200, F_GETFD));
    ASK(write(200, buffer, 8));
    close(200);
}

static void ioctls(const char *who, int fd)
{
    int value = 1;
    struct termios t;
    struct winsize w;
    long flags = 0;
    ASK(ioctl(fd, FIONBIO, &value));
    ASK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    value = 0;
    ASK(ioctl(fd, FIONBIO, &value));
    ASK(fcntl(fd, F_GETFL) & O_NONBLOCK);
    ASK(ioctl(fd, FIONBIO, nowhere));
    ASK(ioctl(fd, FIONCLEX));
    ASK(fcntl(fd, F_GETFD));
    ASK(ioctl(fd, FIOCLEX));
    ASK(fcntl(fd, F_GETFD));
    value = 1;
    ASK(ioctl(fd, FIOASYNC, &value));
    value = 0;
    ASK(ioctl(fd, FIOASYNC, &value));
    ASK(ioctl(fd, FIONREAD, &value));
    ASK(ioctl(fd, FIOQSIZE, &flags));
    ASK(ioctl(fd, FIGETBSZ, &value));
    ASK(ioctl(fd, FIBMAP, &value));
    ASK(ioctl(fd, FICLONE, scratch));
    ASK(ioctl(fd, FS_IOC_GETFLAGS, &flags));
    ASK(ioctl(fd, FS_IOC_SETFLAGS, &flags));
    ASK(ioctl(fd, FS_IOC_GETVERSION, &flags));
    ASK(ioctl(fd, _IOWR('f', 11, char[32]), buffer));
    ASK(ioctl(fd, TCGETS, &t));
    ASK(ioctl(fd, TIOCGWINSZ, &w));
    ASK(ioctl(fd, 0, 0));
    ASK(ioctl(fd, 0xffffffff, 0));
    ASK(ioctl(fd, _IO(0xad, 0), 0));
    ASK(ioctl(fd, _IO(0xaf, 0), 0));
    ASK(ioctl(fd, _IO(KVMIO, 0xff), 0));
    ASK(ioctl(fd, _IOR(KVMIO, 0xff, int), &value));
    ASK(ioctl(fd, 0x100000000ul | KVM_GET_API_VERSION, 0));
}

static void waits(const char *who, int fd)
{
    struct pollfd p = {.fd = fd, .events = -1};
    fd_set r, w, x;
    struct timeval none = {0};
    int e = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    ASK(poll(&p, 1, 0));
    printf("%s revents = %x\n", who, p.revents);
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_ZERO(&x);
    FD_SET(fd, &r);
    FD_SET(fd, &w);
    FD_SET(fd, &x);
    ASK(select(fd + 1, &r, &w, &x, &none));
    printf("%s select = read %d write %d else %d\n", who, !!FD_ISSET(fd, &r), !!FD_ISSET(fd, &w), !!FD_ISSET(fd, &x));
    ASK(epoll_ctl(e, EPOLL_CTL_ADD, fd, &event));
    close(e);
}

#define RW (PROT_READ | PROT_WRITE)
#define MAPPED(len, prot, flags, offset) \
    do { \
        errno = 0; \
        void *p = mmap(0, len, prot, flags, fd, offset); \
        say(who, "mmap(" #len ", " #prot ", " #flags ", " #offset ")", p == MAP_FAILED ? -1 : 0); \
        if (p != MAP_FAILED) munmap(p, len); \
    } while (0)

static void maps(const char *who, int fd)
{
    MAPPED(0, RW, MAP_SHARED, 0);
    MAPPED(1, RW, MAP_SHARED, 0);
    MAPPED(4096, RW, MAP_SHARED, 0);
    MAPPED(4096, RW, MAP_SHARED, 4095);
    MAPPED(4096, RW, MAP_SHARED, 4096 * 64);
    MAPPED(4096, RW, MAP_SHARED, 1l << 40);
    MAPPED(4096, RW, MAP_SHARED, -4096);
    MAPPED(8192, RW, MAP_SHARED, -4096);
    MAPPED(1ul << 50, RW, MAP_SHARED, 0);
    MAPPED(-1ul, RW, MAP_SHARED, 0);
    MAPPED(4096, RW, MAP_PRIVATE, 0);
    MAPPED(4096, RW, MAP_SHARED_VALIDATE, 0);
    MAPPED(4096, RW, MAP_SHARED_VALIDATE | MAP_SYNC, 0);
    MAPPED(4096, RW, MAP_SHARED | MAP_HUGETLB, 0);
    MAPPED(4096, RW, MAP_SHARED | MAP_POPULATE, 0);
    MAPPED(4096, RW, 0, 0);
    MAPPED(4096, RW, 12, 0);
    MAPPED(4096, PROT_NONE, MAP_SHARED, 0);
    MAPPED(4096, PROT_READ, MAP_SHARED, 0);
    MAPPED(4096, PROT_WRITE, MAP_SHARED, 0);
    MAPPED(4096, RW, MAP_SHARED | MAP_ANONYMOUS, 0);
}

/* The run page and its neighbours as memory. */
static void memory(const char *who, int fd)
{
    const int pages = 4;
    unsigned char *p = mmap(0, pages * 4096, RW, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    for (int n = 0; n < pages; n++)
        printf("%s page %d = read %d write %d\n", who, n, touch(p + n * 4096, 0), touch(p + n * 4096, 1));
    for (int n = 1; n <= 4; n++) {
        unsigned char *q = mmap(0, 4096, RW, MAP_SHARED, fd, n * 4096);
        CHECK(q != MAP_FAILED);
        int signal = touch(q, 1);
        printf("%s page %d alone = %d\n", who, n, signal);
        if (!signal && n < pages) {
            p[n * 4096 + 4000] = 10 + n;
            printf("%s page %d is the same memory = %d\n", who, n, q[4000] == 10 + n);
        }
        munmap(q, 4096);
    }
    /* A private mapping is a copy once it was written. */
    struct kvm_run *copy = mmap(0, 4096, RW, MAP_PRIVATE, fd, 0), *run = (void *)p;
    CHECK(copy != MAP_FAILED);
    run->immediate_exit = 0, run->request_interrupt_window = 3;
    printf("%s private = %d", who, copy->request_interrupt_window);
    copy->request_interrupt_window = 4;
    printf(" then %d and %d\n", copy->request_interrupt_window, run->request_interrupt_window);
    run->request_interrupt_window = 0;
    munmap(copy, 4096);
    ASK(mprotect(p, 4096, PROT_READ));
    printf("%s page 0, read only = read %d write %d\n", who, touch(p, 0), touch(p, 1));
    /* The kernel has another way to the page. */
    ASK(ioctl(fd, KVM_RUN, 0));
    printf("%s exit = %d\n", who, run->exit_reason);
    ASK(mprotect(p, 4096, PROT_NONE));
    ASK(ioctl(fd, KVM_RUN, 0));
    ASK(mprotect(p, pages * 4096, RW));
    printf("%s exit = %d\n", who, run->exit_reason);
    ASK(madvise(p, 4096, MADV_DONTNEED));
    printf("%s after MADV_DONTNEED = exit %d\n", who, run->exit_reason);
    ASK(mlock(p, 4096));
    ASK(munlock(p, 4096));
    unsigned char *moved = mremap(p, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, p + 2 * 4096);
    printf("%s mremap onto page 2 = %d, page 0 there: %d, exit %d\n", who, moved == p + 2 * 4096, touch(p, 0),
        moved == MAP_FAILED ? -1 : (int)((struct kvm_run *)moved)->exit_reason);
    munmap(p, pages * 4096);
    ASK(ioctl(fd, KVM_RUN, 0));
    p = mmap(0, 4096, RW, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    printf("%s mapped again = exit %d\n", who, ((struct kvm_run *)p)->exit_reason);
    unsigned char *grown = mremap(p, 4096, 8192, MREMAP_MAYMOVE);
    printf("%s mremap to two pages = %d\n", who, grown != MAP_FAILED);
    if (grown != MAP_FAILED)
        printf("%s the second = %d\n", who, touch(grown + 4096, 1)), munmap(grown, 8192);
    else
        munmap(p, 4096);
}

/* A vCPU with a dirty ring: nothing between the pages of the run and the ring. */
static void ring(void)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_DIRTY_LOG_RING, .args = {4096}};
    int vm = ioctl(the.kvm, KVM_CREATE_VM, 0);
    CHECK(vm >= 0);
    if (ioctl(vm, KVM_ENABLE_CAP, &cap))
        return;
    int fd = ioctl(vm, KVM_CREATE_VCPU, 0);
    CHECK(fd >= 0);
    unsigned char *p = mmap(0, 66 * 4096, RW, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    for (int n = 0; n < 66; n += n == 4 ? 59 : 1)
        printf("ring page %d = %d\n", n, touch(p + n * 4096, 0));
    munmap(p, 66 * 4096);
    p = mmap(0, 2 * 4096, RW, MAP_SHARED, fd, 62 * 4096);
    printf("ring pages 62 and 63 alone = %d %d\n", touch(p, 0), touch(p + 4096, 0));
    printf("ring executable = %d\n", mmap(0, 4096, PROT_EXEC, MAP_SHARED, fd, 64 * 4096) != MAP_FAILED);
    printf("ring private = %d\n", mmap(0, 4096, RW, MAP_PRIVATE, fd, 64 * 4096) != MAP_FAILED);
    close(fd), close(vm);
}

/* In a child, to which the objects do not belong. */
static void child(void)
{
    const char *who = "child";
    int fd = the.vm, status;
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        struct stat s;
        ASK(ioctl(fd, KVM_CHECK_EXTENSION, 0));
        ASK(read(fd, buffer, 8));
        ASK(pwrite(the.vcpu, buffer, 8, 0));
        ASK(lseek(fd, 4096, SEEK_SET));
        ASK(ftruncate(fd, 4096));
        CHECK(fstat(fd, &s) == 0);
        printf("%s fstat = mode %o\n", who, s.st_mode);
        exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void *reads(void *pipe)
{
    char byte;
    return (void *)(long)read(((int *)pipe)[0], &byte, 1);
}

/* Of other descriptors nothing has changed: a thread that waits in read can be cancelled. */
static void cancelled(void)
{
    int ends[2];
    pthread_t t;
    void *result;
    CHECK(pipe(ends) == 0 && pthread_create(&t, 0, reads, ends) == 0);
    usleep(20000);
    CHECK(pthread_cancel(t) == 0 && pthread_join(t, &result) == 0);
    printf("others can be cancelled in read = %d\n", result == PTHREAD_CANCELED);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

int main(void)
{
    struct sigaction action = {.sa_handler = fault, .sa_flags = SA_NODEFER};
    sigaction(SIGBUS, &action, 0);
    sigaction(SIGSEGV, &action, 0);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, 0, _IOLBF, 0);
    the = make(LOOP, sizeof LOOP, 0);
    /* in al,0x10; jmp back: each KVM_RUN ends. */
    static const unsigned char port[] = {0xe4, 0x10, 0xeb, 0xfc};
    load(&the, port, sizeof port);
    FILE *file = tmpfile();
    CHECK(file && pipe2(pipes, O_CLOEXEC | O_NONBLOCK) == 0);
    scratch = fileno(file);
    CHECK(ftruncate(scratch, 65536) == 0);
    struct { const char *name; int fd; } all[] = {
        {"system", the.kvm},
        {"read-only", open("/dev/kvm", O_RDONLY)},
        {"write-only", open("/dev/kvm", O_WRONLY | O_NONBLOCK)},
        {"vm", the.vm},
        {"vcpu", the.vcpu},
        {"vm-stats", ioctl(the.vm, KVM_GET_STATS_FD, 0)},
        {"vcpu-stats", ioctl(the.vcpu, KVM_GET_STATS_FD, 0)},
    };
    for (unsigned n = 0; n < sizeof all / sizeof *all; n++) {
        if (all[n].fd < 0) {
            printf("%s = none\n", all[n].name);
            continue;
        }
        transfers(all[n].name, all[n].fd);
        places(all[n].name, all[n].fd);
        files(all[n].name, all[n].fd);
        ioctls(all[n].name, all[n].fd);
        waits(all[n].name, all[n].fd);
        maps(all[n].name, all[n].fd);
    }
    memory("vcpu", the.vcpu);
    ring();
    child();
    cancelled();
    /* And after all of that it still is a VM. */
    struct kvm_regs r;
    CHECK(ioctl(the.vcpu, KVM_GET_REGS, &r) == 0 && r.rip - 0x1000 < 4);
    return 0;
}
