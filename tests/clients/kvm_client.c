/* A small VMM in C, for tests/tests/exec.rs: descriptors, lifetimes, faults, what the host looks like. A case is named by the
   first argument; 0: it held. Not here: signals in depth (kvm_signals.c), hostile use (kvm_hostile.c). */
#include "vmm.h"

static void boot(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    hello(&v);
}

static void fds(void)
{
    int before = descriptors();
    struct vm v = make(HELLO, sizeof HELLO, 0);
    CHECK(fcntl(v.kvm, F_GETFD) == FD_CLOEXEC && fcntl(v.vm, F_GETFD) == FD_CLOEXEC);
    CHECK(fcntl(v.vcpu, F_GETFD) == FD_CLOEXEC);
    int all[] = {v.kvm, v.vm, v.vcpu};
    int ep = epoll_create1(0);
    for (int n = 0; n < 3; n++) {
        struct pollfd p = {.fd = all[n], .events = POLLIN | POLLOUT};
        CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT));
        struct epoll_event e = {.events = EPOLLIN};
        CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, all[n], &e) == -1 && errno == EPERM);
    }
    close(ep);
    CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, v.kvm, 0) == MAP_FAILED && errno == ENODEV);
    CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, v.vm, 0) == MAP_FAILED && errno == ENODEV);
    CHECK(ioctl(v.vm, KVM_GET_REGS, 0) == -1 && errno == ENOTTY);
    CHECK(ioctl(v.vcpu, KVM_RUN, 1) == -1 && errno == EINVAL);
    CHECK(ioctl(v.vcpu, KVM_GET_REGS, 8) == -1 && errno == EFAULT);
    struct stat st;
    CHECK(fstat(v.kvm, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
    char link[64] = "", name[64];
    sprintf(name, "/proc/self/fd/%d", v.vm);
    CHECK(readlink(name, link, sizeof link - 1) > 0 && !strcmp(link, "anon_inode:kvm-vm"));
    /* A duplicate is the same VM, and a vCPU keeps it alive. */
    int twin = dup(v.vm), high = fcntl(v.vcpu, F_DUPFD_CLOEXEC, 200);
    close(v.vm);
    close(v.kvm);
    CHECK(ioctl(twin, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1);
    close(twin);
    CHECK(ioctl(twin, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == -1 && errno == EBADF);
    /* A number that is used again is something else. */
    close(v.vcpu);
    int null = open("/", O_RDONLY);
    CHECK(dup2(null, v.vcpu) == v.vcpu);
    CHECK(ioctl(v.vcpu, KVM_RUN, 0) == -1 && errno == ENOTTY);
    close(v.vcpu);
    close(null);
    v.vcpu = high;
    hello(&v);
    /* The mapping outlives the descriptor. */
    close(v.vcpu);
    CHECK(v.run->exit_reason == KVM_EXIT_HLT);
    munmap(v.run, v.size);
    CHECK(descriptors() == before);
}

/* Many VMs one after the other: nothing of them stays. */
static void lifetimes(void)
{
    int before = descriptors();
    for (int n = 0; n < 200; n++) {
        struct vm v = make(HELLO, sizeof HELLO, n & 1);
        close(v.kvm);
        close(v.vm);
        if (n & 2) {
            munmap(v.run, v.size);
            close(v.vcpu);
        } else {
            close(v.vcpu);
            munmap(v.run, v.size);
        }
        munmap(v.ram, RAM);
        CHECK(descriptors() == before);
    }
}

static void forks(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        CHECK(ioctl(v.vcpu, KVM_RUN, 0) == -1 && errno == EIO);
        CHECK(ioctl(v.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == -1 && errno == EIO);
        for (int fd = 3; fd < 100; fd++)
            close(fd);
        /* And one of its own. */
        struct vm own = make(HELLO, sizeof HELLO, 0);
        hello(&own);
        exit(9);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 9);
    child = vfork();
    if (!child) {
        signal(SIGUSR1, SIG_DFL);
        close(v.vcpu);
        close(v.vm);
        close_range(3, ~0U, 0);
        _exit(8);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 8);
    hello(&v);
}

static void sockets(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    int s[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    char data = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec io = {&data, 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &v.vcpu, sizeof(int));
    CHECK(sendmsg(s[0], &m, 0) == 1);
    close(v.vcpu);
    close(v.vm);
    munmap(v.run, v.size);
    CHECK(recvmsg(s[1], &m, 0) == 1);
    memcpy(&v.vcpu, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
    v.run = mmap(0, v.size, PROT_READ | PROT_WRITE, MAP_SHARED, v.vcpu, 0);
    CHECK(v.run != MAP_FAILED);
    hello(&v);
}

/* The ring of coalesced MMIO is the VM's, behind each vCPU's own pages. */
static void coalesced(void)
{
    /* mov [0x10],al; hlt */
    static const unsigned char CODE[] = {0xb0, 0x5a, 0xa2, 0x10, 0x00, 0xf4};
    struct vm v = make(CODE, sizeof CODE, 0);
    struct kvm_sregs s;
    CHECK(ioctl(v.vcpu, KVM_GET_SREGS, &s) == 0);
    s.ds.base = 0x20000;
    CHECK(ioctl(v.vcpu, KVM_SET_SREGS, &s) == 0);
    struct kvm_coalesced_mmio_zone zone = {.addr = 0x20000, .size = 0x1000};
    CHECK(ioctl(v.vm, KVM_REGISTER_COALESCED_MMIO, &zone) == 0);
    int page = ioctl(v.kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);
    CHECK(page > 0);
    struct kvm_coalesced_mmio_ring *ring = (void *)((char *)v.run + page * 4096);
    CHECK(ring->first == 0 && ring->last == 0);
    CHECK(ioctl(v.vcpu, KVM_RUN, 0) == 0 && v.run->exit_reason == KVM_EXIT_HLT);
    CHECK(ring->first == 0 && ring->last == 1);
    struct kvm_coalesced_mmio *m = ring->coalesced_mmio;
    CHECK(m->phys_addr == 0x20010 && m->len == 1 && m->data[0] == 0x5a);
    /* The same page, mapped alone, and by another vCPU. */
    struct kvm_coalesced_mmio_ring *alone = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, v.vcpu, page * 4096);
    int second = ioctl(v.vm, KVM_CREATE_VCPU, 1);
    char *other = mmap(0, v.size, PROT_READ | PROT_WRITE, MAP_SHARED, second, 0);
    CHECK(alone != MAP_FAILED && alone->last == 1 && other != MAP_FAILED);
    CHECK(((struct kvm_coalesced_mmio_ring *)(other + page * 4096))->last == 1);
}

/* ---- signals -------------------------------------------------------------------------------------- */

static struct vm the;
static volatile sig_atomic_t handled, registers_read;
static sigjmp_buf back;
static pthread_t main_thread;

static volatile int enough;

/* Again and again: one that comes before KVM_RUN does not end it. */
static void *sender(void *signal)
{
    while (usleep(50000), !enough)
        pthread_kill(main_thread, (long)signal);
    return 0;
}

static pthread_t later(long signal)
{
    pthread_t t;
    enough = 0;
    main_thread = pthread_self();
    CHECK(pthread_create(&t, 0, sender, (void *)signal) == 0);
    return t;
}

static void stop(pthread_t t)
{
    enough = 1;
    pthread_join(t, 0);
}

static void handle(int signal)
{
    struct kvm_regs r;
    handled = signal;
    /* KVM_RUN is over when a handler runs. */
    if (ioctl(the.vcpu, KVM_GET_REGS, &r) == 0 && r.rip == 0x1000)
        registers_read = 1;
}

static void interrupted(void)
{
    signal(SIGUSR1, handle);
    the = make(LOOP, sizeof LOOP, 0);
    pthread_t t = later(SIGUSR1);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
    CHECK(handled == SIGUSR1 && registers_read && the.run->exit_reason == KVM_EXIT_INTR);
    stop(t);
    /* Installed after the open; a mask, an argument, an alternate stack. */
    struct sigaction a = {.sa_handler = handle, .sa_flags = SA_RESTART}, now;
    sigaddset(&a.sa_mask, SIGUSR2);
    CHECK(sigaction(SIGALRM, &a, 0) == 0 && sigaction(SIGALRM, 0, &now) == 0);
    CHECK(now.sa_handler == handle && (now.sa_flags & SA_RESTART) && sigismember(&now.sa_mask, SIGUSR2));
    for (int n = 0; n < 20; n++) {
        struct itimerval timer = {.it_value.tv_usec = 1000 + n * 300, .it_interval.tv_usec = 20000};
        handled = registers_read = 0;
        CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
        CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
        CHECK(handled == SIGALRM && registers_read);
    }
    struct itimerval none = {0};
    CHECK(setitimer(ITIMER_REAL, &none, 0) == 0);
    /* immediate_exit, which no signal is needed for. */
    the.run->immediate_exit = 1;
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
}

static void jump(int signal)
{
    handled = signal;
    siglongjmp(back, 1);
}

static void jumps(void)
{
    signal(SIGUSR1, jump);
    the = make(LOOP, sizeof LOOP, 0);
    for (int n = 0; n < 10; n++) {
        volatile pthread_t t;
        if (!sigsetjmp(back, 1)) {
            t = later(SIGUSR1);
            ioctl(the.vcpu, KVM_RUN, 0);
            CHECK(!"KVM_RUN has returned");
        }
        stop(t);
        CHECK(handled == SIGUSR1);
    }
    load(&the, HELLO, sizeof HELLO);
    hello(&the);
}

static void set_mask(int vcpu, const sigset_t *set)
{
    struct kvm_signal_mask *m = malloc(sizeof *m + 8);
    m->len = 8;
    memcpy(m->sigset, set, 8);
    CHECK(ioctl(vcpu, KVM_SET_SIGNAL_MASK, m) == 0);
    free(m);
}

static void *queuer(void *unused)
{
    (void)unused;
    usleep(50000);
    union sigval v = {.sival_int = 4711};
    pthread_sigqueue(main_thread, SIGUSR1, v);
    return 0;
}

static void masks(void)
{
    signal(SIGUSR1, handle);
    the = make(LOOP, sizeof LOOP, 0);
    sigset_t set, empty, now;
    sigemptyset(&set);
    sigemptyset(&empty);
    sigaddset(&set, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    set_mask(the.vcpu, &empty);
    for (int n = 0; n < 5; n++) {
        pthread_t t;
        main_thread = pthread_self();
        CHECK(pthread_create(&t, 0, queuer, 0) == 0);
        CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
        pthread_join(t, 0);
        CHECK(!handled);
        CHECK(pthread_sigmask(SIG_BLOCK, 0, &now) == 0 && sigismember(&now, SIGUSR1));
        /* It is pending: KVM_RUN does not go on. */
        CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR);
        siginfo_t info;
        struct timespec zero = {0};
        CHECK(sigtimedwait(&set, &info, &zero) == SIGUSR1);
        CHECK(info.si_value.sival_int == 4711 && info.si_code == SI_QUEUE && info.si_pid == getpid());
        CHECK(sigtimedwait(&set, &info, &zero) == -1 && errno == EAGAIN);
    }
    /* Blocked during KVM_RUN, and taken after it. */
    set_mask(the.vcpu, &set);
    pthread_sigmask(SIG_UNBLOCK, &set, 0);
    signal(SIGUSR2, handle);
    pthread_kill(pthread_self(), SIGUSR2);
    CHECK(handled == SIGUSR2);
    handled = 0;
    load(&the, LONG, sizeof LONG);
    pthread_t t = later(SIGUSR1);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == 0 && the.run->exit_reason == KVM_EXIT_IO);
    stop(t);
    CHECK(handled == SIGUSR1);
}

static void ignored(void)
{
    signal(SIGUSR1, SIG_IGN);
    the = make(LONG, sizeof LONG, 0);
    signal(SIGUSR2, SIG_IGN);
    pthread_t a = later(SIGUSR1), b = later(SIGUSR2), c = later(SIGCHLD);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == 0 && the.run->exit_reason == KVM_EXIT_IO);
    stop(a), stop(b), stop(c);
}

static void halted(void)
{
    signal(SIGUSR1, handle);
    the = make(HALT, sizeof HALT, 1);
    struct timespec before, after;
    pthread_t t = later(SIGUSR1);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && handled);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
    stop(t);
    printf("halted for 50 ms: %ld us\n", (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000);
    /* A signal for the process, not for a thread. */
    struct itimerval timer = {.it_value.tv_usec = 20000, .it_interval.tv_usec = 20000};
    signal(SIGALRM, handle);
    CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && handled == SIGALRM);
}

/* ---- faults --------------------------------------------------------------------------------------- */

static void *unmapper(void *unused)
{
    (void)unused;
    usleep(50000);
    munmap(the.ram + 0x5000, 0x1000);
    return 0;
}

static void never(int signal)
{
    (void)signal;
    _exit(3);
}

static void vanishing(void)
{
    struct kvm_regs r;
    signal(SIGSEGV, never);
    the = make(READER, sizeof READER, 0);
    signal(SIGBUS, never);
    pthread_t t;
    CHECK(pthread_create(&t, 0, unmapper, 0) == 0);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EFAULT);
    pthread_join(t, 0);
    CHECK(ioctl(the.vcpu, KVM_GET_REGS, &r) == 0 && r.rip == 0x1000);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EFAULT);
    /* It comes back, and the guest goes on, though every signal is blocked. */
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EFAULT);
    CHECK(mmap(the.ram + 0x5000, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    load(&the, HELLO, sizeof HELLO);
    hello(&the);
}

static volatile void *fault_address;
static volatile int on_stack;
static char stack[65536];

static void on_segv(int signal, siginfo_t *info, void *context)
{
    char here;
    (void)signal;
    fault_address = info->si_addr;
    on_stack = &here >= stack && &here < stack + sizeof stack;
    CHECK(((ucontext_t *)context)->uc_mcontext.gregs[REG_TRAPNO] == 14);
    siglongjmp(back, 1);
}

/* Faults of the program's own: its handlers, as it asked for them. */
static void faults(void)
{
    the = make(HELLO, sizeof HELLO, 0);
    stack_t s = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(sigaltstack(&s, 0) == 0);
    struct sigaction a = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_ONSTACK}, now;
    CHECK(sigaction(SIGSEGV, &a, 0) == 0);
    CHECK(sigaction(SIGSEGV, 0, &now) == 0 && now.sa_sigaction == on_segv);
    for (int n = 0; n < 3; n++) {
        fault_address = 0;
        if (!sigsetjmp(back, 1))
            *(volatile int *)0x1234 = 1;
        CHECK(fault_address == (void *)0x1234 && on_stack);
        load(&the, HELLO, sizeof HELLO);
        hello(&the);
    }
    a.sa_flags = SA_SIGINFO | SA_RESETHAND;
    CHECK(sigaction(SIGSEGV, &a, 0) == 0);
    if (!sigsetjmp(back, 1))
        *(volatile int *)0x1234 = 1;
    CHECK(!on_stack && sigaction(SIGSEGV, 0, &now) == 0 && now.sa_handler == SIG_DFL);
    /* The default: the process dies of it. */
    pid_t child = fork();
    if (!child) {
        *(volatile int *)0x1234 = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    child = fork();
    if (!child) {
        raise(SIGBUS);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

/* ---- what the host looks like ----------------------------------------------------------------------- */

static int raw_readlink(const char *path, char *buffer, size_t len)
{
    long r;
    register long r10 asm("r10") = len;
    asm volatile("syscall" : "=a"(r) : "a"(SYS_readlinkat), "D"(AT_FDCWD), "S"(path), "d"(buffer), "r"(r10) : "rcx", "r11", "memory");
    return r;
}

/* No descriptor of this process is the kernel's KVM; the kernel itself is asked. */
static void unopened(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    hello(&v);
    for (int fd = 0; fd < 65536; fd++) {
        char path[64], link[256] = "";
        sprintf(path, "/proc/self/fd/%d", fd);
        if (raw_readlink(path, link, sizeof link - 1) > 0)
            CHECK(!strstr(link, "/dev/kvm") && !strstr(link, "anon_inode:kvm"));
    }
}

static void facts(void)
{
    struct stat st;
    struct statx sx;
    CHECK(access("/dev/kvm", R_OK | W_OK) == 0 && access("//dev/./kvm", F_OK) == 0);
    CHECK(access("/dev/kvm", X_OK) == -1 && errno == EACCES);
    CHECK(stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232));
    CHECK(statx(AT_FDCWD, "/dev/kvm", 0, STATX_ALL, &sx) == 0 && sx.stx_rdev_major == 10 && sx.stx_rdev_minor == 232);
    CHECK(chdir("/dev") == 0 && access("kvm", F_OK) == 0 && chdir("/") == 0 && access("kvm", F_OK) == -1);
    CHECK(open("/dev/kvm", O_RDWR | O_DIRECTORY) == -1 && errno == ENOTDIR);
    int dev = open("/dev", O_RDONLY | O_DIRECTORY), fd = openat(dev, "kvm", O_RDWR);
    CHECK(fd >= 0 && ioctl(fd, KVM_GET_API_VERSION, 0) == 12);
    CHECK(syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR) >= 0);
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[8192];
    int virtual = 0;
    CHECK(f);
    while (fgets(line, sizeof line, f))
        virtual |= !strncmp(line, "flags", 5) && (strstr(line, " svm") || strstr(line, " vmx"));
    CHECK(virtual);
    fclose(f);
    f = fopen("/sys/module/kvm_intel/parameters/nested", "r");
    if (!f)
        f = fopen("/sys/module/kvm_amd/parameters/nested", "r");
    CHECK(f && fgets(line, sizeof line, f));
    fclose(f);
    CHECK(access("/sys/module/kvm/parameters/nothing", F_OK) == -1 && errno == ENOENT);
    CHECK(stat("/sys/module/kvm", &st) == 0 && S_ISDIR(st.st_mode));
    char *real = realpath("/dev/../dev/kvm", 0);
    CHECK(real && !strcmp(real, "/dev/kvm"));
    free(real);
}

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int directory, const char *path, int flags);
int __openat64_2(int directory, const char *path, int flags);

/* The same calls by every name that the C library has for them. */
static void calls(void)
{
    struct { unsigned long flags, mode, resolve; } how = {.flags = O_RDWR | O_CLOEXEC};
    int all[] = {
        open("/dev/kvm", O_RDWR), open64("/dev/kvm", O_RDWR), openat(AT_FDCWD, "/dev/kvm", O_RDWR),
        openat64(-1, "/dev/kvm", O_RDWR), __open_2("/dev/kvm", O_RDWR), __open64_2("/dev/kvm", O_RDWR),
        __openat_2(AT_FDCWD, "/dev/kvm", O_RDWR), __openat64_2(AT_FDCWD, "/dev/kvm", O_RDWR),
        fileno(fopen("/dev/kvm", "r+")), fileno(fopen64("/dev/kvm", "re")), syscall(SYS_open, "/dev/kvm", O_RDWR),
        syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR), syscall(SYS_openat2, AT_FDCWD, "/dev/kvm", &how, sizeof how),
    };
    for (unsigned n = 0; n < sizeof all / sizeof *all; n++) {
        CHECK(all[n] >= 0);
        CHECK(ioctl(all[n], KVM_GET_API_VERSION, 0) == 12);
        CHECK(syscall(SYS_ioctl, all[n], KVM_GET_API_VERSION, 0) == 12);
    }
    CHECK(fcntl(all[12], F_GETFD) == FD_CLOEXEC && fcntl(all[0], F_GETFD) == 0);
    int vm = syscall(SYS_ioctl, all[0], KVM_CREATE_VM, 0), twin = syscall(SYS_dup, vm);
    CHECK(vm >= 0 && twin >= 0 && syscall(SYS_close, vm) == 0);
    CHECK(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == -1 && errno == EBADF);
    int vcpu = syscall(SYS_ioctl, twin, KVM_CREATE_VCPU, 0), moved = 90;
    CHECK(vcpu >= 0 && dup2(vcpu, moved) == moved && dup3(vcpu, 91, O_CLOEXEC) == 91 && fcntl(91, F_GETFD) == FD_CLOEXEC);
    char *run = (char *)syscall(SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, moved, 0);
    CHECK(run != MAP_FAILED && syscall(SYS_munmap, run, 4096) == 0);
    struct stat st;
    struct statx sx;
    CHECK(fstatat(AT_FDCWD, "/dev/kvm", &st, 0) == 0 && S_ISCHR(st.st_mode));
    CHECK(lstat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode));
    CHECK(syscall(SYS_stat, "/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && syscall(SYS_fstat, all[0], &st) == 0);
    CHECK(statx(all[0], "", AT_EMPTY_PATH, STATX_ALL, &sx) == 0 && sx.stx_rdev_minor == 232);
    CHECK(faccessat(AT_FDCWD, "/dev/kvm", R_OK | W_OK, 0) == 0 && faccessat(AT_FDCWD, "/dev/kvm", R_OK, AT_EACCESS) == 0);
    CHECK(eaccess("/dev/kvm", R_OK | W_OK) == 0 && syscall(SYS_access, "/dev/kvm", R_OK) == 0);
    CHECK(open("/dev/kvm", O_RDWR | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
}

/* After the first KVM_RUN nothing but these (docs/exec.md); anything else is trapped. */
static const int ALLOWED[] = {
    SYS_ioctl, SYS_fstat, SYS_futex, SYS_sched_yield, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_tgsigqueueinfo, SYS_tgkill,
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_madvise, SYS_mprotect, SYS_clock_gettime,
    SYS_getrandom, SYS_pread64, SYS_read, SYS_write, SYS_epoll_wait,
    /* The test's own. */
    SYS_exit_group, SYS_setitimer,
};

/* pand xmm0,xmm1; fld1; fldpi; faddp; rdrand eax; cpuid; rdtsc; out 0x10,al; hlt */
static const unsigned char MIXED[] = {0x66, 0x0f, 0xdb, 0xc1, 0xd9, 0xe8, 0xd9, 0xeb, 0xde, 0xc1, 0x66, 0x0f, 0xc7, 0xf0,
    0x0f, 0xa2, 0x0f, 0x31, 0xe6, 0x10, 0xf4};

static void forbidden(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    fprintf(stderr, "system call %d is not on the list\n", info->si_syscall);
    _exit(1);
}

static void filtered(void)
{
    struct sigaction trap = {.sa_sigaction = forbidden, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSYS, &trap, 0) == 0);
    signal(SIGALRM, handle);
    the = make(HELLO, sizeof HELLO, 1);
    struct kvm_sregs s;
    CHECK(ioctl(the.vcpu, KVM_GET_SREGS, &s) == 0);
    s.cr4 |= 0x600;
    CHECK(ioctl(the.vcpu, KVM_SET_SREGS, &s) == 0);
    struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 rows[200]; } cpuid = {.head.nent = 200};
    CHECK(ioctl(the.kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) == 0 && ioctl(the.vcpu, KVM_SET_CPUID2, &cpuid) == 0);
    int event = eventfd(0, EFD_CLOEXEC);
    struct kvm_irqfd irqfd = {.fd = event, .gsi = 5};
    CHECK(ioctl(the.vm, KVM_IRQFD, &irqfd) == 0);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == 0);
    enum { N = sizeof ALLOWED / sizeof *ALLOWED };
    struct sock_filter f[N + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    for (int n = 0; n < N; n++)
        f[n + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ALLOWED[n], N - n, 0);
    f[N + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    f[N + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {N + 3, f};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
    for (int n = 0; n < 300; n++) {
        load(&the, MIXED, sizeof MIXED);
        CHECK(ioctl(the.vcpu, KVM_RUN, 0) == 0 && the.run->exit_reason == KVM_EXIT_IO);
    }
    unsigned long one = 1;
    CHECK(write(event, &one, sizeof one) == sizeof one);
    /* Memory that goes. */
    load(&the, READER, sizeof READER);
    munmap(the.ram + 0x5000, 0x1000);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EFAULT);
    struct itimerval timer = {.it_value.tv_usec = 20000, .it_interval.tv_usec = 20000};
    setitimer(ITIMER_REAL, &timer, 0);
    load(&the, HALT, sizeof HALT);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && handled == SIGALRM);
}

static const char *self;

/* A child with an environment of its own. */
static void children(void)
{
    char *argv[] = {(char *)self, "boot", 0}, *empty[] = {0};
    int status;
    for (int n = 0; n < 2; n++) {
        if (n)
            boot();
        pid_t child = fork();
        if (!child) {
            execve(self, argv, empty);
            _exit(127);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        child = vfork();
        if (!child) {
            execve(self, argv, empty);
            _exit(127);
        }
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    char command[4096];
    snprintf(command, sizeof command, "%s boot", self);
    CHECK(system(command) == 0);
}

static void *spin(void *v)
{
    struct vm *vm = v;
    hello(vm);
    return 0;
}

/* Two VMs in two threads. */
static void threads(void)
{
    struct vm v[8];
    pthread_t t[8];
    for (int n = 0; n < 8; n++)
        v[n] = make(HELLO, sizeof HELLO, 0);
    for (int n = 0; n < 8; n++)
        CHECK(pthread_create(&t[n], 0, spin, &v[n]) == 0);
    for (int n = 0; n < 8; n++)
        pthread_join(t[n], 0);
}

int main(int argc, char **argv)
{
    static const struct test CASES[] = {
        {"boot", boot}, {"fds", fds}, {"lifetimes", lifetimes}, {"forks", forks}, {"sockets", sockets}, {"coalesced", coalesced},
        {"interrupted", interrupted}, {"jumps", jumps}, {"masks", masks}, {"ignored", ignored}, {"halted", halted},
        {"vanishing", vanishing}, {"faults", faults}, {"unopened", unopened}, {"facts", facts}, {"calls", calls},
        {"filtered", filtered}, {"children", children}, {"threads", threads},
    };
    self = argv[0];
    if (argc > 1 && !strncmp(argv[1], "status=", 7))
        return atoi(argv[1] + 7);
    return run_case(CASES, sizeof CASES / sizeof *CASES, argc, argv);
}
