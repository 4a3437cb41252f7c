//! `softkvm exec`: signals around KVM_RUN are as a kernel's KVM has them (`tests/clients/kvm_signals.c`; each case also holds
//! on a host's own KVM).

softkvm_tests::cases! { "kvm_signals";
    window_busy "100,000 signals around the beginning of KVM_RUN, with a busy guest: none is lost, sigtimedwait finds each.";
    window_halted "The same with a halted guest: between the check and the sleep.";
    window_immediate_busy "The same with a handler that sets immediate_exit.";
    window_immediate_halted "And with a halted guest.";
    dispositions "SIG_IGN and SIG_DFL of signals that only KVM_RUN lets in; what a child is started with.";
    flags "SA_ONSTACK, SA_RESTART, SA_NODEFER, SA_RESETHAND, sa_mask.";
    signalfds "signalfd finds what KVM_RUN let in.";
    shared "A signal for the process, let in by KVM_RUN alone, is any thread's to take.";
    timers "Timers of the thread and of the process; real-time signals queue.";
    kicks "pthread_kill, tkill and tgkill with immediate_exit, busy and halted.";
    order "Handlers from before and after the first open.";
    many_jumps "A thousand siglongjmps out of KVM_RUN.";
    cancelled "pthread_cancel of a vCPU's thread, at once and at the next point.";
}
