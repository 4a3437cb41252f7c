/* watch FILE PROGRAM ARGUMENTS...: runs the program and tells whether anybody opened the file meanwhile, by whatever call.
   The program's status, or 9 if it was opened. For tests/tests/exec_host.rs. */
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int status = 0, fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    char event[4096];
    if (argc < 3 || fd < 0 || inotify_add_watch(fd, argv[1], IN_OPEN) < 0)
        return 8;
    pid_t child = fork();
    if (!child) {
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 8;
    if (read(fd, event, sizeof event) > 0)
        return 9;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
