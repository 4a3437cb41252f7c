/* A VMM in C, for tests/tests/exec.rs: signals around KVM_RUN, as a kernel's KVM has them. A case is named by the first
   argument; 0: it held. Not here: the plain cases, which kvm_client.c has. */
#include "vmm.h"
#include <sched.h>
#include <sys/signalfd.h>
#include <stdatomic.h>

static struct vm the;
static volatile sig_atomic_t handled;
static pthread_t vcpu_thread;

static void handle(int signal)
{
    handled = signal;
}

static sigset_t only(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    if (signal)
        sigaddset(&set, signal);
    return set;
}

/* KVM_SET_SIGNAL_MASK: `set` is blocked during KVM_RUN. */
static void set_mask(int vcpu, sigset_t set)
{
    struct { struct kvm_signal_mask head; char bits[8]; } m = {.head.len = 8};
    memcpy((char *)&m + offsetof(struct kvm_signal_mask, sigset), &set, 8);
    CHECK(ioctl(vcpu, KVM_SET_SIGNAL_MASK, &m) == 0);
}

static int run(void)
{
    return ioctl(the.vcpu, KVM_RUN, 0) == 0 ? 0 : errno;
}

/* Takes a pending signal of the set; 0: there is none. */
static int take(sigset_t set, siginfo_t *info)
{
    struct timespec zero = {0};
    int r = sigtimedwait(&set, info, &zero);
    return r > 0 ? r : 0;
}

/* ---- the window between check and sleep ----------------------------------------------------------- */

#define REPEATS 100000
static atomic_int ready;

static timer_t own_timer;

/* One signal from a timer of this thread's own, after a time that differs from round to round: it comes before
   KVM_RUN, on the way in, while the guest runs or sleeps. */
static void arm(unsigned *random)
{
    *random = *random * 1103515245 + 12345;
    struct itimerspec when = {.it_value.tv_nsec = 1 + (*random >> 16) % 16384};
    CHECK(timer_settime(own_timer, 0, &when, 0) == 0);
}

static void prepare(void (*handler)(int), const void *code, size_t len, int irqchip)
{
    signal(SIGUSR1, handler);
    the = make(code, len, irqchip);
    struct sigevent e = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    e._sigev_un._tid = syscall(SYS_gettid);
    CHECK(timer_create(CLOCK_MONOTONIC, &e, &own_timer) == 0);
}

/* The signal is open during KVM_RUN only: each one ends it, and is found by sigtimedwait. */
static void masked_window(const void *code, size_t len, int irqchip)
{
    prepare(handle, code, len, irqchip);
    sigset_t set = only(SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    set_mask(the.vcpu, only(0));
    unsigned random = 1;
    for (int n = 1; n <= REPEATS; n++) {
        siginfo_t info;
        arm(&random);
        CHECK(run() == EINTR);
        CHECK(take(set, &info) == SIGUSR1 && info.si_code == SI_TIMER);
        CHECK(take(set, &info) == 0);
    }
    CHECK(!handled);
}

static void ask_for_exit(int signal)
{
    handled = signal;
    the.run->immediate_exit = 1;
}

/* The handler sets immediate_exit: a KVM_RUN that has begun ends by the signal, one that has not by the byte. */
static void immediate_window(const void *code, size_t len, int irqchip)
{
    prepare(ask_for_exit, code, len, irqchip);
    unsigned random = 1;
    for (int n = 1; n <= REPEATS; n++) {
        handled = 0;
        arm(&random);
        CHECK(run() == EINTR && handled && the.run->immediate_exit);
        the.run->immediate_exit = 0;
    }
}

static void window_busy(void) { masked_window(LOOP, sizeof LOOP, 0); }
static void window_halted(void) { masked_window(HALT, sizeof HALT, 1); }
static void window_immediate_busy(void) { immediate_window(LOOP, sizeof LOOP, 0); }
static void window_immediate_halted(void) { immediate_window(HALT, sizeof HALT, 1); }

/* ---- what a signal without a handler does ----------------------------------------------------------- */

struct shot { int signal, process; };

static void *shooter(void *arg)
{
    struct shot *s = arg;
    usleep(30000);
    if (s->process)
        kill(getpid(), s->signal);
    else
        pthread_kill(vcpu_thread, s->signal);
    return 0;
}

/* KVM_RUN with one signal on its way; its errno. */
static int run_with(int signal, int process)
{
    static struct shot s;
    s = (struct shot){signal, process};
    pthread_t t;
    vcpu_thread = pthread_self();
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    CHECK(pthread_create(&t, 0, shooter, &s) == 0);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    int r = run();
    pthread_join(t, 0);
    return r;
}

/* Blocked in the thread, open in KVM_RUN: ignored or fatal, such a signal ends KVM_RUN and stays pending. */
static void dispositions(void)
{
    static const struct { int signal; void (*action)(int); } ROWS[] = {
        {SIGUSR1, SIG_IGN}, {SIGUSR2, SIG_DFL}, {SIGCHLD, SIG_DFL}, {SIGTERM, SIG_DFL}, {SIGCHLD, SIG_IGN}, {SIGTSTP, SIG_DFL},
        {SIGURG, SIG_DFL}, {SIGUSR2, handle}, {SIGUSR2, SIG_DFL},
    };
    the = make(LOOP, sizeof LOOP, 0);
    for (unsigned n = 0; n < sizeof ROWS / sizeof *ROWS; n++)
        for (int process = 0; process < 2; process++) {
            sigset_t set = only(ROWS[n].signal);
            siginfo_t info;
            signal(ROWS[n].signal, ROWS[n].action);
            CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
            set_mask(the.vcpu, only(0));
            CHECK(run_with(ROWS[n].signal, process) == EINTR);
            /* And KVM_RUN does not go on while it is pending. */
            CHECK(run() == EINTR);
            struct sigaction now;
            CHECK(sigaction(ROWS[n].signal, 0, &now) == 0 && now.sa_handler == ROWS[n].action);
            CHECK(take(set, &info) == ROWS[n].signal && info.si_code <= 0 && info.si_pid == getpid());
            CHECK(take(set, &info) == 0);
            CHECK(pthread_sigmask(SIG_UNBLOCK, &set, 0) == 0);
        }
    /* Open in both: ignored is ignored. */
    load(&the, LONG, sizeof LONG);
    signal(SIGUSR1, SIG_IGN);
    CHECK(run_with(SIGUSR1, 0) == 0 && the.run->exit_reason == KVM_EXIT_IO);
    /* One that is ignored after it came is gone. */
    load(&the, LOOP, sizeof LOOP);
    sigset_t set = only(SIGUSR2);
    siginfo_t info;
    signal(SIGUSR2, SIG_DFL);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    CHECK(run_with(SIGUSR2, 0) == EINTR);
    signal(SIGUSR2, SIG_IGN);
    CHECK(take(set, &info) == 0);
    signal(SIGUSR2, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    /* The default, when it is let through at last. */
    for (int both = 0; both < 2; both++) {
        pid_t child = fork();
        if (!child) {
            the = make(LOOP, sizeof LOOP, 0);
            set_mask(the.vcpu, only(0));
            if (both)
                CHECK(pthread_sigmask(SIG_UNBLOCK, &set, 0) == 0);
            CHECK(run_with(SIGUSR2, 0) == EINTR);
            CHECK(!both && pthread_sigmask(SIG_UNBLOCK, &set, 0) == 0);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR2);
    }
    /* What a child is started with is what the program has set. */
    CHECK(signal(SIGUSR1, SIG_IGN) != SIG_ERR);
    set = only(SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    CHECK(run_with(SIGUSR1, 0) == EINTR && take(set, &info) == SIGUSR1);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, 0) == 0);
    pid_t child = fork();
    if (!child) {
        char *argv[] = {"sh", "-c", "kill -USR1 $$; exit 5", 0};
        execve("/bin/sh", argv, environ);
        _exit(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
}

/* ---- flags of sigaction ----------------------------------------------------------------------------- */

static char stack[65536];
static volatile int on_stack, depth, deepest, raised;

static void on_alternate(int signal, siginfo_t *info, void *context)
{
    char here;
    (void)info, (void)context;
    on_stack = &here >= stack && &here < stack + sizeof stack;
    handled = signal;
}

static void nested(int signal)
{
    handled = signal;
    if (++depth > deepest)
        deepest = depth;
    if (!raised++)
        raise(signal);
    depth--;
}

static void flags(void)
{
    the = make(LOOP, sizeof LOOP, 0);
    stack_t s = {.ss_sp = stack, .ss_size = sizeof stack};
    CHECK(sigaltstack(&s, 0) == 0);
    struct sigaction a = {.sa_sigaction = on_alternate, .sa_flags = SA_SIGINFO | SA_ONSTACK}, now;
    CHECK(sigaction(SIGUSR1, &a, 0) == 0);
    CHECK(run_with(SIGUSR1, 0) == EINTR && handled == SIGUSR1 && on_stack);
    a.sa_flags = SA_SIGINFO;
    CHECK(sigaction(SIGUSR1, &a, 0) == 0);
    CHECK(run_with(SIGUSR1, 1) == EINTR && !on_stack);
    stack_t after;
    CHECK(sigaltstack(0, &after) == 0 && after.ss_sp == stack && after.ss_flags == 0);
    /* KVM_RUN is not restarted. */
    a = (struct sigaction){.sa_handler = handle, .sa_flags = SA_RESTART};
    handled = 0;
    CHECK(sigaction(SIGUSR1, &a, 0) == 0);
    CHECK(run_with(SIGUSR1, 0) == EINTR && handled == SIGUSR1);
    /* A handler that its own signal may interrupt, and one that it may not. */
    for (int n = 0; n < 2; n++) {
        a = (struct sigaction){.sa_handler = nested, .sa_flags = n ? SA_NODEFER : 0};
        depth = deepest = raised = 0;
        CHECK(sigaction(SIGUSR2, &a, 0) == 0);
        CHECK(run_with(SIGUSR2, 0) == EINTR && handled == SIGUSR2);
        CHECK(deepest == 1 + n);
        sigset_t open;
        CHECK(pthread_sigmask(SIG_BLOCK, 0, &open) == 0 && !sigismember(&open, SIGUSR2));
    }
    a = (struct sigaction){.sa_handler = handle, .sa_flags = SA_RESETHAND};
    handled = 0;
    CHECK(sigaction(SIGUSR2, &a, 0) == 0);
    CHECK(run_with(SIGUSR2, 0) == EINTR && handled == SIGUSR2);
    CHECK(sigaction(SIGUSR2, 0, &now) == 0 && now.sa_handler == SIG_DFL);
    /* sa_mask. */
    a = (struct sigaction){.sa_handler = nested};
    sigaddset(&a.sa_mask, SIGUSR1);
    CHECK(sigaction(SIGUSR2, &a, 0) == 0);
    CHECK(run_with(SIGUSR2, 1) == EINTR);
}

/* ---- signalfd, timers, kicks ------------------------------------------------------------------------ */

static void signalfds(void)
{
    the = make(LOOP, sizeof LOOP, 0);
    sigset_t set = only(SIGUSR1);
    signal(SIGUSR1, handle);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    CHECK(fd >= 0);
    struct signalfd_siginfo info;
    for (int process = 0; process < 2; process++) {
        set_mask(the.vcpu, only(0));
        CHECK(run_with(SIGUSR1, process) == EINTR);
        struct pollfd p = {.fd = fd, .events = POLLIN};
        CHECK(poll(&p, 1, 0) == 1);
        CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1 && info.ssi_pid == (unsigned)getpid());
        CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN);
        /* Blocked in KVM_RUN too: it ends nothing, and waits for who reads. */
        set_mask(the.vcpu, set);
        load(&the, LONG, sizeof LONG);
        CHECK(run_with(SIGUSR1, process) == 0 && the.run->exit_reason == KVM_EXIT_IO);
        CHECK(read(fd, &info, sizeof info) == sizeof info);
        load(&the, LOOP, sizeof LOOP);
    }
    CHECK(!handled);
}

static void *waiter(void *set)
{
    struct timespec limit = {.tv_sec = 20};
    siginfo_t info;
    return (void *)(long)sigtimedwait(set, &info, &limit);
}

/* One for the process, which KVM_RUN alone lets in: another thread's sigtimedwait may have it. */
static void shared(void)
{
    the = make(LOOP, sizeof LOOP, 0);
    sigset_t set = only(SIGUSR1);
    sigaddset(&set, SIGALRM);
    signal(SIGUSR1, handle), signal(SIGALRM, handle);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    sigset_t mask = only(SIGCHLD);
    set_mask(the.vcpu, mask);
    for (int n = 0; n < 2; n++) {
        pid_t child = 0;
        if (n == 0 && !(child = fork())) {
            usleep(30000);
            kill(getppid(), SIGUSR1);
            _exit(0);
        }
        struct itimerval timer = {.it_value.tv_usec = 30000};
        if (n == 1)
            CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
        CHECK(run() == EINTR);
        pthread_t t;
        void *got;
        CHECK(pthread_create(&t, 0, waiter, &set) == 0 && pthread_join(t, &got) == 0);
        CHECK((long)got == (n ? SIGALRM : SIGUSR1) && !handled);
        siginfo_t info;
        CHECK(take(set, &info) == 0);
        if (child)
            waitpid(child, 0, 0);
    }
}

static volatile int value;

static void on_timer(int signal, siginfo_t *info, void *context)
{
    (void)context;
    handled = signal;
    if (info->si_code == SI_TIMER)
        value = info->si_value.sival_int;
}

static void timers(void)
{
    the = make(HALT, sizeof HALT, 1);
    struct sigaction a = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGRTMIN, &a, 0) == 0);
    for (int n = 0; n < 20; n++) {
        struct sigevent e = {.sigev_notify = n & 1 ? SIGEV_THREAD_ID : SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 100 + n};
        e._sigev_un._tid = syscall(SYS_gettid);
        timer_t timer;
        CHECK(timer_create(CLOCK_MONOTONIC, &e, &timer) == 0);
        struct itimerspec when = {.it_value.tv_nsec = 2000000 + n * 100000, .it_interval.tv_nsec = 50000000};
        handled = value = 0;
        CHECK(timer_settime(timer, 0, &when, 0) == 0);
        CHECK(run() == EINTR && handled == SIGRTMIN && value == 100 + n);
        CHECK(timer_delete(timer) == 0);
    }
    /* Real-time signals queue, each with its value. */
    sigset_t set = only(SIGRTMIN);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, 0) == 0);
    set_mask(the.vcpu, only(0));
    for (int n = 0; n < 5; n++) {
        union sigval v = {.sival_int = n};
        CHECK(pthread_sigqueue(pthread_self(), SIGRTMIN, v) == 0);
    }
    unsigned seen = 0;
    for (int n = 0; n < 5; n++) {
        siginfo_t info;
        CHECK(run() == EINTR);
        CHECK(take(set, &info) == SIGRTMIN && info.si_code == SI_QUEUE);
        seen |= 1 << info.si_value.sival_int;
    }
    CHECK(seen == 31);
}

static atomic_int turns, over;

static void *runner(void *unused)
{
    (void)unused;
    vcpu_thread = pthread_self();
    atomic_store(&ready, syscall(SYS_gettid));
    while (!atomic_load(&over)) {
        CHECK(run() == EINTR);
        the.run->immediate_exit = 0;
        atomic_fetch_add(&turns, 1);
    }
    return 0;
}

/* Kicks from another thread, as VMMs do it: pthread_kill, tgkill, tkill, and immediate_exit before each. */
static void kicks(void)
{
    signal(SIGRTMIN + 1, handle);
    for (int irqchip = 0; irqchip < 2; irqchip++) {
        atomic_store(&ready, 0), atomic_store(&turns, 0), atomic_store(&over, 0);
        the = irqchip ? make(HALT, sizeof HALT, 1) : make(LOOP, sizeof LOOP, 0);
        pthread_t t;
        CHECK(pthread_create(&t, 0, runner, 0) == 0);
        while (!atomic_load(&ready))
            ;
        for (int n = 0; n < 300; n++) {
            int before = atomic_load(&turns);
            *(volatile char *)&the.run->immediate_exit = 1;
            if (n % 3 == 0)
                CHECK(pthread_kill(t, SIGRTMIN + 1) == 0);
            else
                CHECK(syscall(n % 3 == 1 ? SYS_tkill : SYS_tgkill, n % 3 == 1 ? atomic_load(&ready) : getpid(),
                    n % 3 == 1 ? SIGRTMIN + 1 : atomic_load(&ready), SIGRTMIN + 1) == 0);
            while (atomic_load(&turns) == before)
                sched_yield();
        }
        atomic_store(&over, 1);
        *(volatile char *)&the.run->immediate_exit = 1;
        pthread_kill(t, SIGRTMIN + 1);
        pthread_join(t, 0);
    }
}

/* Handlers from before the first open are the program's as much as those from after. */
static void order(void)
{
    struct sigaction a = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO | SA_RESTART}, now;
    sigaddset(&a.sa_mask, SIGUSR2);
    CHECK(sigaction(SIGUSR1, &a, 0) == 0);
    signal(SIGHUP, SIG_IGN);
    the = make(LOOP, sizeof LOOP, 0);
    CHECK(sigaction(SIGUSR1, 0, &now) == 0 && now.sa_sigaction == on_timer && (now.sa_flags & SA_RESTART) && sigismember(&now.sa_mask, SIGUSR2));
    CHECK(signal(SIGHUP, SIG_DFL) == SIG_IGN);
    CHECK(run_with(SIGUSR1, 0) == EINTR && handled == SIGUSR1);
    CHECK(signal(SIGWINCH, handle) == SIG_DFL);
    CHECK(run_with(SIGWINCH, 1) == EINTR && handled == SIGWINCH);
    CHECK(signal(SIGWINCH, SIG_DFL) == handle);
    CHECK(sysv_signal(SIGUSR2, handle) != SIG_ERR);
    CHECK(run_with(SIGUSR2, 0) == EINTR && handled == SIGUSR2);
    CHECK(sigaction(SIGUSR2, 0, &now) == 0 && now.sa_handler == SIG_DFL);
}

/* ---- leaving for good ------------------------------------------------------------------------------ */

static sigjmp_buf back;

static void jump(int signal)
{
    handled = signal;
    siglongjmp(back, 1);
}

/* A thousand jumps out of KVM_RUN: nothing of it is left behind. */
static void many_jumps(void)
{
    signal(SIGALRM, jump);
    the = make(HALT, sizeof HALT, 1);
    int before = descriptors();
    for (volatile int n = 0; n < 1000; n++) {
        struct itimerval timer = {.it_value.tv_usec = 100 + n % 400}, none = {0};
        if (!sigsetjmp(back, 1)) {
            CHECK(setitimer(ITIMER_REAL, &timer, 0) == 0);
            for (;;)
                CHECK(run() == EINTR);
        }
        CHECK(setitimer(ITIMER_REAL, &none, 0) == 0);
        struct kvm_regs r;
        CHECK(ioctl(the.vcpu, KVM_GET_REGS, &r) == 0 && r.rip >= 0x1000 && r.rip < 0x1004);
    }
    CHECK(descriptors() == before);
    load(&the, HELLO, sizeof HELLO);
    the.run->immediate_exit = 0;
    struct vm other = make(HELLO, sizeof HELLO, 0);
    hello(&other);
}

static void *cancellable(void *asynchronous)
{
    int old;
    pthread_setcanceltype(asynchronous ? PTHREAD_CANCEL_ASYNCHRONOUS : PTHREAD_CANCEL_DEFERRED, &old);
    atomic_store(&ready, 1);
    for (;;) {
        run();
        pthread_testcancel();
    }
    return 0;
}

/* A vCPU's thread that is cancelled: at once, or at the next point after a kick. Its vCPU is another's then. */
static void cancelled(void)
{
    signal(SIGUSR1, handle);
    for (long n = 0; n < 20; n++) {
        atomic_store(&ready, 0);
        the = n & 2 ? make(HALT, sizeof HALT, 1) : make(LOOP, sizeof LOOP, 0);
        pthread_t t;
        CHECK(pthread_create(&t, 0, cancellable, (void *)(n & 1)) == 0);
        while (!atomic_load(&ready))
            ;
        usleep(20000);
        CHECK(pthread_cancel(t) == 0);
        if (!(n & 1))
            CHECK(pthread_kill(t, SIGUSR1) == 0);
        void *result;
        CHECK(pthread_join(t, &result) == 0 && result == PTHREAD_CANCELED);
        struct kvm_regs r;
        CHECK(ioctl(the.vcpu, KVM_GET_REGS, &r) == 0);
        load(&the, HELLO, sizeof HELLO);
        if (!(n & 2))
            hello(&the);
        close(the.vcpu), close(the.vm), close(the.kvm);
    }
}

int main(int argc, char **argv)
{
    static const struct test CASES[] = {
        {"window_busy", window_busy}, {"window_halted", window_halted}, {"window_immediate_busy", window_immediate_busy},
        {"window_immediate_halted", window_immediate_halted}, {"dispositions", dispositions}, {"flags", flags},
        {"signalfds", signalfds}, {"shared", shared}, {"timers", timers}, {"kicks", kicks}, {"order", order},
        {"many_jumps", many_jumps}, {"cancelled", cancelled},
    };
    return run_case(CASES, sizeof CASES / sizeof *CASES, argc, argv);
}
