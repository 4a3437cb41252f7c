/* A VMM in C, for tests/tests/exec.rs, that does what VMMs should not: thousands of VMs, threads and processes that end in the
   middle, descriptors that are closed under a running vCPU, filters of system calls that know nothing of us. What it had
   before it has afterwards: descriptors, memory, threads, mappings. A case is named by the first argument; 0: it held. */
#include "vmm.h"
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>

static struct vm the;
static volatile sig_atomic_t handled;

static void handle(int signal)
{
    handled = signal;
}

/* A number in /proc/self/status. */
static long status_of(const char *name)
{
    char line[256];
    long value = -1;
    FILE *f = fopen("/proc/self/status", "r");
    CHECK(f);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            value = atol(line + strlen(name));
    fclose(f);
    return value;
}

static long mappings(void)
{
    int c;
    long lines = 0;
    FILE *f = fopen("/proc/self/maps", "r");
    CHECK(f);
    while ((c = getc(f)) != EOF)
        lines += c == '\n';
    fclose(f);
    return lines;
}

struct usage { long descriptors, threads, mappings, kib; };

/* Threads and what they held end a little after the call that ended them. */
static struct usage usage(void)
{
    usleep(20000);
    return (struct usage){descriptors(), status_of("Threads:"), mappings(), status_of("VmRSS:")};
}

static void same(struct usage before, struct usage after, long kib)
{
    fprintf(stderr, "descriptors %ld -> %ld, threads %ld -> %ld, mappings %ld -> %ld, KiB %ld -> %ld\n", before.descriptors,
        after.descriptors, before.threads, after.threads, before.mappings, after.mappings, before.kib, after.kib);
    CHECK(after.descriptors == before.descriptors);
    CHECK(after.threads == before.threads);
    /* The C library's heap may have split a few times. */
    CHECK(after.mappings <= before.mappings + 8);
    CHECK(after.kib <= before.kib + kib);
}

/* What a VM can own, all of it: interrupt chips, a timer, an irqfd, an ioeventfd, routes, slots, a dirty log. */
static void one_vm(int n)
{
    struct vm v = make(HELLO, sizeof HELLO, 1);
    struct kvm_pit_config pit = {0};
    CHECK(ioctl(v.vm, KVM_CREATE_PIT2, &pit) == 0);
    int event = eventfd(0, EFD_CLOEXEC);
    struct kvm_irqfd irqfd = {.fd = event, .gsi = 5};
    CHECK(ioctl(v.vm, KVM_IRQFD, &irqfd) == 0);
    struct kvm_ioeventfd io = {.addr = 0x30, .len = 1, .fd = event, .flags = KVM_IOEVENTFD_FLAG_PIO};
    if (n & 1)
        CHECK(ioctl(v.vm, KVM_IOEVENTFD, &io) == 0);
    char *more = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region m = {.slot = 1, .guest_phys_addr = 1 << 20, .memory_size = 1 << 20,
        .userspace_addr = (unsigned long)more, .flags = KVM_MEM_LOG_DIRTY_PAGES};
    CHECK(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &m) == 0);
    int second = ioctl(v.vm, KVM_CREATE_VCPU, 1);
    CHECK(second >= 0);
    CHECK(ioctl(v.vcpu, KVM_RUN, 0) == 0 && v.run->exit_reason == KVM_EXIT_IO);
    if (n & 2)
        close(event);
    /* Sometimes the memory goes first, sometimes a descriptor. */
    if (n & 4)
        munmap(v.ram, RAM), munmap(more, 1 << 20);
    close(v.kvm);
    if (n & 8)
        munmap(v.run, v.size), close(v.vcpu), close(second), close(v.vm);
    else
        close(v.vm), close(second), close(v.vcpu), munmap(v.run, v.size);
    if (!(n & 4))
        munmap(v.ram, RAM), munmap(more, 1 << 20);
    if (!(n & 2))
        close(event);
}

static void thousands(void)
{
    for (int n = 0; n < 64; n++)
        one_vm(n);
    struct usage before = usage();
    for (int n = 0; n < 3000; n++)
        one_vm(n);
    same(before, usage(), 2048);
}

/* Closed in every order; the last reference takes the memory with it, and none before. */
static void any_order(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    hello(&v);
    close(v.kvm), close(v.vm), close(v.vcpu), munmap(v.run, v.size), munmap(v.ram, RAM);
    struct usage before = usage();
    for (int order = 0; order < 256; order++) {
        int seen = 0, steps[4], mapped = 1, open = 1;
        for (int k = 0; k < 4; k++)
            steps[k] = order >> 2 * k & 3, seen |= 1 << steps[k];
        if (seen != 15)
            continue;
        v = make(HELLO, sizeof HELLO, order & 1);
        for (int k = 0; k < 4; k++) {
            struct kvm_regs r;
            switch (steps[k]) {
            case 0: close(v.kvm); break;
            case 1: close(v.vm); break;
            case 2: close(v.vcpu), open = 0; break;
            case 3: munmap(v.run, v.size), mapped = 0; break;
            }
            if (open)
                CHECK(ioctl(v.vcpu, KVM_GET_REGS, &r) == 0 && r.rip == 0x1000);
            if (mapped)
                v.run->request_interrupt_window = k;
        }
        munmap(v.ram, RAM);
    }
    same(before, usage(), 2048);
}

/* Many page tables: a guest with paging that touches much. What it cost is back when the vCPU, the last, is closed. */
static void memory_comes_back(void)
{
    enum { MIB = 64 };
    struct vm warm = make(HELLO, sizeof HELLO, 0);
    hello(&warm);
    close(warm.kvm), close(warm.vm), close(warm.vcpu), munmap(warm.run, warm.size), munmap(warm.ram, RAM);
    struct usage before = usage();
    for (int n = 0; n < 8; n++) {
        struct vm v = make(HELLO, sizeof HELLO, 0);
        char *more = mmap(0, MIB << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        struct kvm_userspace_memory_region m = {.slot = 1, .guest_phys_addr = 1 << 20, .memory_size = MIB << 20,
            .userspace_addr = (unsigned long)more, .flags = KVM_MEM_LOG_DIRTY_PAGES};
        CHECK(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &m) == 0);
        /* mov byte [esi],1; add esi,4096; loop; hlt: in protected mode, flat. */
        static const unsigned char TOUCH[] = {0xc6, 0x06, 0x01, 0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, 0xe2, 0xf5, 0xf4};
        load(&v, TOUCH, sizeof TOUCH);
        struct kvm_sregs s;
        CHECK(ioctl(v.vcpu, KVM_GET_SREGS, &s) == 0);
        s.cr0 |= 1;
        s.cs.db = 1, s.cs.g = 1, s.cs.limit = ~0U, s.cs.type = 11, s.cs.s = 1, s.cs.present = 1;
        s.ds = s.cs, s.ds.type = 3, s.ds.selector = 8;
        s.es = s.fs = s.gs = s.ss = s.ds;
        CHECK(ioctl(v.vcpu, KVM_SET_SREGS, &s) == 0);
        struct kvm_regs r = {.rip = 0x1000, .rflags = 2, .rsi = 1 << 20, .rcx = MIB << 8};
        CHECK(ioctl(v.vcpu, KVM_SET_REGS, &r) == 0);
        CHECK(ioctl(v.vcpu, KVM_RUN, 0) == 0 && v.run->exit_reason == KVM_EXIT_HLT);
        CHECK(more[(MIB << 20) - 4096] == 1);
        close(v.kvm), close(v.vm);
        CHECK(ioctl(v.vcpu, KVM_GET_REGS, &r) == 0 && r.rcx == 0);
        munmap(v.run, v.size), munmap(more, MIB << 20), munmap(v.ram, RAM);
        close(v.vcpu);
    }
    same(before, usage(), 2048);
}

/* The run page moves with mremap, and keeps its vCPU. */
static void remapped(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    hello(&v);
    close(v.kvm), close(v.vm), close(v.vcpu), munmap(v.run, v.size), munmap(v.ram, RAM);
    struct usage before = usage();
    v = make(HELLO, sizeof HELLO, 0);
    void *place = mmap(0, v.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_run *moved = mremap(v.run, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    CHECK(moved == place);
    munmap((char *)v.run + 4096, v.size - 4096);
    CHECK(ioctl(v.vcpu, KVM_RUN, 0) == 0 && moved->exit_reason == KVM_EXIT_IO && moved->io.port == 0x10);
    close(v.kvm), close(v.vm), close(v.vcpu);
    CHECK(moved->exit_reason == KVM_EXIT_IO);
    munmap(place, v.size), munmap(v.ram, RAM);
    same(before, usage(), 2048);
}

/* ---- threads and processes that end ------------------------------------------------------------------ */

static atomic_int running, stopped;

static void *runner(void *v)
{
    struct vm *vm = v;
    atomic_fetch_add(&running, 1);
    while (!atomic_load(&stopped))
        ioctl(vm->vcpu, KVM_RUN, 0);
    return 0;
}

static struct vm many[4];

/* Four vCPUs, two of them busy, in threads. */
static void start_four(pthread_t *t)
{
    atomic_store(&running, 0), atomic_store(&stopped, 0);
    for (int n = 0; n < 4; n++) {
        many[n] = n & 1 ? make(HALT, sizeof HALT, 1) : make(LOOP, sizeof LOOP, 0);
        CHECK(pthread_create(&t[n], 0, runner, &many[n]) == 0);
    }
    while (atomic_load(&running) != 4)
        ;
    usleep(20000);
}

static const char *self;

static void *executes(void *unused)
{
    (void)unused;
    execl(self, self, "boot", (char *)0);
    _exit(1);
}

static void boot(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    hello(&v);
}

static void exits_while_running(void)
{
    for (int n = 0; n < 6; n++) {
        pid_t child = fork();
        if (!child) {
            pthread_t t[4], other;
            start_four(t);
            switch (n) {
            case 0: exit(42);
            case 1: _exit(42);
            case 2: raise(SIGKILL); break;
            case 3: abort();
            case 4: execl(self, self, "boot", (char *)0); break;
            case 5: pthread_create(&other, 0, executes, 0), pthread_join(other, 0); break;
            }
            _exit(1);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        if (n < 2)
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
        else if (n < 4)
            CHECK(WIFSIGNALED(status) && WTERMSIG(status) == (n == 2 ? SIGKILL : SIGABRT));
        else
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void *makes_and_goes(void *unused)
{
    (void)unused;
    the = make(HELLO, sizeof HELLO, 1);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == 0 && the.run->exit_reason == KVM_EXIT_IO);
    return 0;
}

/* A thread that is gone leaves its VM to the others. */
static void threads_that_go(void)
{
    struct usage before;
    for (int n = 0; n < 200; n++) {
        pthread_t t;
        if (n == 10)
            before = usage();
        CHECK(pthread_create(&t, 0, makes_and_goes, 0) == 0 && pthread_join(t, 0) == 0);
        CHECK(ioctl(the.vcpu, KVM_RUN, 0) == 0 && the.run->exit_reason == KVM_EXIT_IO);
        close(the.kvm), close(the.vm), close(the.vcpu), munmap(the.run, the.size), munmap(the.ram, RAM);
    }
    same(before, usage(), 2048);
}

/* ---- under a running vCPU --------------------------------------------------------------------------- */

static void *reads_registers(void *v)
{
    struct vm *vm = v;
    struct kvm_regs r;
    CHECK(ioctl(vm->vcpu, KVM_GET_REGS, &r) == 0);
    atomic_store(&stopped, 2);
    return 0;
}

/* Descriptors that go while KVM_RUN is on: it goes on, and everything goes with it. */
static void closed_while_running(void)
{
    struct usage before;
    signal(SIGUSR1, handle);
    for (int n = 0; n < 60; n++) {
        if (n == 6)
            before = usage();
        atomic_store(&running, 0), atomic_store(&stopped, 0);
        struct vm v = n & 1 ? make(HALT, sizeof HALT, 1) : make(LOOP, sizeof LOOP, 0);
        pthread_t t;
        CHECK(pthread_create(&t, 0, runner, &v) == 0);
        while (!atomic_load(&running))
            ;
        usleep(1000 + n * 100);
        atomic_store(&stopped, 1);
        close(v.vm), close(v.kvm), close(v.vcpu);
        if (n & 2)
            munmap(v.run, v.size);
        CHECK(pthread_kill(t, SIGUSR1) == 0);
        struct timespec soon;
        for (;;) {
            clock_gettime(CLOCK_REALTIME, &soon);
            soon.tv_nsec += 10000000, soon.tv_sec += soon.tv_nsec / 1000000000, soon.tv_nsec %= 1000000000;
            if (pthread_timedjoin_np(t, 0, &soon) == 0)
                break;
            pthread_kill(t, SIGUSR1);
        }
        if (!(n & 2))
            munmap(v.run, v.size);
        munmap(v.ram, RAM);
    }
    same(before, usage(), 2048);
}

/* Another thread's ioctl on a vCPU waits until KVM_RUN is over. */
static void concurrent(void)
{
    signal(SIGUSR1, handle);
    struct vm v = make(LOOP, sizeof LOOP, 0);
    pthread_t t, reader;
    atomic_store(&running, 0), atomic_store(&stopped, 0);
    CHECK(pthread_create(&t, 0, runner, &v) == 0);
    while (!atomic_load(&running))
        ;
    usleep(20000);
    CHECK(pthread_create(&reader, 0, reads_registers, &v) == 0);
    usleep(50000);
    CHECK(atomic_load(&stopped) == 0);
    while (atomic_load(&stopped) != 2) {
        v.run->immediate_exit = 1;
        pthread_kill(t, SIGUSR1);
        usleep(1000);
    }
    pthread_join(reader, 0), pthread_join(t, 0);
}

/* No descriptors left: EMFILE, and nothing half made. */
static void limits(void)
{
    struct vm v = make(HELLO, sizeof HELLO, 0);
    hello(&v);
    struct usage before = usage();
    int taken[4096], n = 0;
    struct rlimit limit = {64, 64};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while (n < 4096 && (taken[n] = dup(0)) >= 0)
        n++;
    CHECK(errno == EMFILE);
    for (int k = 0; k < 100; k++) {
        CHECK(open("/dev/kvm", O_RDWR) == -1 && errno == EMFILE);
        CHECK(ioctl(v.kvm, KVM_CREATE_VM, 0) == -1 && (errno == EMFILE || errno == ENOMEM));
        CHECK(ioctl(v.vm, KVM_CREATE_VCPU, 1) == -1 && (errno == EMFILE || errno == ENOMEM));
    }
    while (n)
        close(taken[--n]);
    same(before, usage(), 2048);
    load(&v, HELLO, sizeof HELLO);
    hello(&v);
}

/* ---- filters of system calls ---------------------------------------------------------------------- */

/* What a VMM lets its vCPUs' threads do: the ioctl, and the C library's own needs. */
static const int VCPU_CALLS[] = {
    SYS_exit, SYS_exit_group, SYS_write, SYS_close, SYS_fstat, SYS_brk, SYS_munmap, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_sigaltstack, SYS_futex, SYS_madvise, SYS_ioctl,
};
/* And its other threads. */
static const int LESS_CALLS[] = {SYS_exit, SYS_exit_group, SYS_ioctl, SYS_write, SYS_futex, SYS_madvise, SYS_rt_sigprocmask};

static void confine(const int *calls, int n, int by_prctl, int flags)
{
    struct sock_filter f[64] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    for (int k = 0; k < n; k++)
        f[k + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[k], n - k, 0);
    f[n + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    f[n + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n + 3, f};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (by_prctl)
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    else
        CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program) == 0);
}

static struct vm sleeper;

static void *confined_vcpu(void *by_prctl)
{
    confine(VCPU_CALLS, sizeof VCPU_CALLS / sizeof *VCPU_CALLS, by_prctl != 0, 0);
    for (int n = 0; n < 200; n++) {
        load(&the, HELLO, sizeof HELLO);
        hello(&the);
    }
    /* A signal in KVM_RUN, halted and busy, and memory that goes. */
    handled = 0;
    atomic_store(&running, 1);
    CHECK(ioctl(sleeper.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && handled);
    handled = 0;
    load(&the, LOOP, sizeof LOOP);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EINTR && handled);
    load(&the, READER, sizeof READER);
    munmap(the.ram + 0x5000, 0x1000);
    CHECK(ioctl(the.vcpu, KVM_RUN, 0) == -1 && errno == EFAULT);
    atomic_store(&stopped, 1);
    return 0;
}

static void *confined_other(void *unused)
{
    (void)unused;
    confine(LESS_CALLS, sizeof LESS_CALLS / sizeof *LESS_CALLS, 0, SECCOMP_FILTER_FLAG_LOG);
    struct kvm_irq_level level = {.irq = 5};
    for (int n = 0; n < 1000; n++)
        CHECK(ioctl(sleeper.vm, KVM_IRQ_LINE, &level) == 0);
    return 0;
}

/* A filter for each thread, none of which knows what a software processor needs. */
static void confined(void)
{
    signal(SIGUSR1, handle);
    for (long by_prctl = 0; by_prctl < 2; by_prctl++) {
        atomic_store(&running, 0), atomic_store(&stopped, 0);
        sleeper = make(HALT, sizeof HALT, 1);
        pthread_t t, other;
        CHECK(pthread_create(&other, 0, confined_other, 0) == 0 && pthread_join(other, 0) == 0);
        the = make(HELLO, sizeof HELLO, 0);
        CHECK(pthread_create(&t, 0, confined_vcpu, (void *)by_prctl) == 0);
        while (!atomic_load(&running))
            usleep(100);
        while (!atomic_load(&stopped)) {
            usleep(20000);
            pthread_kill(t, SIGUSR1);
        }
        pthread_join(t, 0);
    }
    /* What the program did not allow is as forbidden as ever. */
    pid_t child = fork();
    if (!child) {
        confine(VCPU_CALLS, sizeof VCPU_CALLS / sizeof *VCPU_CALLS, 0, 0);
        syscall(SYS_getppid);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
    child = fork();
    if (!child) {
        confine(VCPU_CALLS, sizeof VCPU_CALLS / sizeof *VCPU_CALLS, 1, 0);
        syscall(SYS_tgkill, getppid(), getppid(), 0);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS);
}

/* ---- idle ------------------------------------------------------------------------------------------- */

/* A halted guest with interrupt chips and a timer that ticks 18 times a second. */
static void idle(void)
{
    the = make(HALT, sizeof HALT, 1);
    struct kvm_pit_config pit = {0};
    CHECK(ioctl(the.vm, KVM_CREATE_PIT2, &pit) == 0);
    pthread_t t;
    atomic_store(&running, 0), atomic_store(&stopped, 0);
    CHECK(pthread_create(&t, 0, runner, &the) == 0);
    while (!atomic_load(&running))
        ;
    usleep(100000);
    struct timespec before, after;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    sleep(2);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    long us = (after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) / 1000;
    fprintf(stderr, "halted for 2 s: %ld us of processor\n", us);
    CHECK(us < 60000);
}

int main(int argc, char **argv)
{
    static const struct test CASES[] = {
        {"boot", boot}, {"thousands", thousands}, {"any_order", any_order}, {"memory_comes_back", memory_comes_back},
        {"remapped", remapped}, {"exits_while_running", exits_while_running}, {"threads_that_go", threads_that_go},
        {"closed_while_running", closed_while_running}, {"concurrent", concurrent}, {"limits", limits}, {"confined", confined},
        {"idle", idle},
    };
    self = argv[0];
    return run_case(CASES, sizeof CASES / sizeof *CASES, argc, argv);
}
