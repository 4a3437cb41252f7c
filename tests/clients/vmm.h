/* What the VMMs in C share: a VM with 64 KiB of RAM and one vCPU in real mode, and what to check with. They know KVM only
   as a kernel offers it: nothing in here is told of softkvm, and on a host with a usable /dev/kvm each case can be run
   without it. Not here: the cases. */
#ifndef VMM_H
#define VMM_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <dirent.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__, #x, errno); exit(1); } } while (0)
#define RAM 0x10000

struct vm {
    int kvm, vm, vcpu, size;
    unsigned char *ram;
    struct kvm_run *run;
};

/* Code of the guests, at 0x1000 in real mode. */
__attribute__((unused)) static const unsigned char HELLO[] = {0xb0, 'h', 0xe6, 0x10, 0xb0, 'i', 0xe6, 0x10, 0xf4};
__attribute__((unused)) static const unsigned char LOOP[] = {0xeb, 0xfe};
__attribute__((unused)) static const unsigned char HALT[] = {0xfa, 0xf4, 0xeb, 0xfd};
/* mov al,[0x5000]; jmp: reads for ever. */
__attribute__((unused)) static const unsigned char READER[] = {0xa0, 0x00, 0x50, 0xeb, 0xfb};
/* mov ecx,N; dec ecx; jnz; out 0x11,al */
__attribute__((unused)) static const unsigned char LONG[] = {0x66, 0xb9, 0, 0, 0x40, 0, 0x66, 0x49, 0x75, 0xfc, 0xe6, 0x11, 0xf4};

static void load(struct vm *v, const void *code, size_t len)
{
    struct kvm_sregs s;
    struct kvm_regs r = {.rip = 0x1000, .rflags = 2};
    memcpy(v->ram + 0x1000, code, len);
    CHECK(ioctl(v->vcpu, KVM_GET_SREGS, &s) == 0);
    s.cs.base = 0, s.cs.selector = 0;
    CHECK(ioctl(v->vcpu, KVM_SET_SREGS, &s) == 0);
    CHECK(ioctl(v->vcpu, KVM_SET_REGS, &r) == 0);
}

static struct vm make(const void *code, size_t len, int irqchip)
{
    struct vm v;
    v.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    CHECK(v.kvm >= 0);
    CHECK(ioctl(v.kvm, KVM_GET_API_VERSION, 0) == 12);
    v.vm = ioctl(v.kvm, KVM_CREATE_VM, 0);
    CHECK(v.vm >= 0);
    v.ram = mmap(0, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(v.ram != MAP_FAILED);
    struct kvm_userspace_memory_region m = {.memory_size = RAM, .userspace_addr = (unsigned long)v.ram};
    CHECK(ioctl(v.vm, KVM_SET_USER_MEMORY_REGION, &m) == 0);
    if (irqchip)
        CHECK(ioctl(v.vm, KVM_CREATE_IRQCHIP, 0) == 0);
    v.vcpu = ioctl(v.vm, KVM_CREATE_VCPU, 0);
    CHECK(v.vcpu >= 0);
    v.size = ioctl(v.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    CHECK(v.size >= 4096);
    v.run = mmap(0, v.size, PROT_READ | PROT_WRITE, MAP_SHARED, v.vcpu, 0);
    CHECK(v.run != MAP_FAILED);
    load(&v, code, len);
    return v;
}

__attribute__((unused)) static void hello(struct vm *v)
{
    char said[3] = "";
    int n = 0;
    for (;;) {
        CHECK(ioctl(v->vcpu, KVM_RUN, 0) == 0);
        if (v->run->exit_reason == KVM_EXIT_HLT)
            break;
        CHECK(v->run->exit_reason == KVM_EXIT_IO && v->run->io.port == 0x10 && n < 2);
        said[n++] = ((char *)v->run)[v->run->io.data_offset];
    }
    CHECK(!strcmp(said, "hi"));
}


__attribute__((unused)) static int descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    CHECK(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* Runs the case that the first argument names; 0: it held. */
struct test { const char *name; void (*f)(void); };

__attribute__((unused)) static int run_case(const struct test *cases, unsigned count, int argc, char **argv)
{
    for (unsigned n = 0; argc > 1 && n < count; n++)
        if (!strcmp(argv[1], cases[n].name)) {
            cases[n].f();
            return 0;
        }
    return 99;
}

#endif
