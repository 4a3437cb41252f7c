//! `softkvm exec`: programs that end in the middle, close what is in use, and make thousands of VMs; filters of system calls
//! that know nothing of the engine (`tests/clients/kvm_hostile.c`).

softkvm_tests::cases! { "kvm_hostile";
    thousands "VMs with all that a VM can own: no descriptor, thread, mapping or memory stays.";
    any_order "Descriptors and mapping of a VM go in every order; the last takes the rest along.";
    memory_comes_back "A VM's memory is back when its last descriptor, a vCPU's, is closed.";
    remapped "The run page, moved by mremap.";
    exits_while_running "exit, abort, SIGKILL and exec while four vCPUs run.";
    threads_that_go "A thread that ends leaves its VM to the others.";
    closed_while_running "close and munmap during KVM_RUN.";
    concurrent "Another thread's ioctl on a vCPU waits for KVM_RUN's end.";
    limits "EMFILE, and nothing half made.";
    confined "A filter of system calls for each thread, made for the kernel's KVM.";
    idle "A halted guest costs nearly nothing.";
}
