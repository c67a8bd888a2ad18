#define _GNU_SOURCE
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

// The children whose status belongs to who started them. The lock is held while one is started, too, so that none is
// taken for an orphan before it is among them.
static pthread_mutex_t children_lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t *children;
static size_t child_count, child_capacity;

static int has_room_for_child(void) {
  if (child_count < child_capacity) return 1;
  pid_t *grown = reallocarray(children, child_capacity + 64, sizeof *grown);
  if (grown == NULL) return 0;
  children = grown;
  child_capacity += 64;
  return 1;
}

static size_t index_of_child(pid_t pid) {
  size_t index = 0;
  while (index < child_count && children[index] != pid) index++;
  return index;
}

struct child_arguments {
  const char *path;
  char *const *argv;
  char *const *envp;
  const char *directory;
  int descriptors[3];
  const char *oom_score_adj;
  pid_t parent;
  // Written by the child, read by the parent: they share the memory, and the parent waits.
  volatile int stage;
  volatile int error;
};

static int child_failed(struct child_arguments *arguments, int stage) {
  arguments->error = errno;
  arguments->stage = stage;
  return 127;
}

// Runs in the child, on its own stack but in the parent's memory, so only async-signal-safe calls are made and
// nothing of the parent is changed but `stage` and `error`.
static int child_main(void *opaque) {
  struct child_arguments *arguments = opaque;

  // Handlers are reset by execve, ignored signals are not.
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = SIG_DFL;
  for (int number = 1; number < NSIG; number++) {
    if (number != SIGKILL && number != SIGSTOP) sigaction(number, &action, NULL);
  }

  if (setsid() < 0) return child_failed(arguments, CLINUX_SPAWN_SETUP);
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return child_failed(arguments, CLINUX_SPAWN_SETUP);
  // The parent may have died before the signal was armed.
  if (getppid() != arguments->parent) {
    errno = ESRCH;
    return child_failed(arguments, CLINUX_SPAWN_SETUP);
  }

  if (arguments->oom_score_adj[0] != '\0') {
    // Raising it needs no privilege; that it can't be raised is no reason not to run.
    int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (file >= 0) {
      ssize_t written = write(file, arguments->oom_score_adj, strlen(arguments->oom_score_adj));
      (void)written;
      close(file);
    }
  }

  // Out of the way first, in case one of them is itself 0, 1 or 2.
  for (int index = 0; index < 3; index++) {
    int moved = fcntl(arguments->descriptors[index], F_DUPFD_CLOEXEC, 3);
    if (moved < 0) return child_failed(arguments, CLINUX_SPAWN_SETUP);
    arguments->descriptors[index] = moved;
  }
  for (int index = 0; index < 3; index++) {
    if (dup2(arguments->descriptors[index], index) < 0) return child_failed(arguments, CLINUX_SPAWN_SETUP);
  }
  if (syscall(SYS_close_range, 3u, ~0u, 0u) < 0) return child_failed(arguments, CLINUX_SPAWN_SETUP);

  if (chdir(arguments->directory) < 0) return child_failed(arguments, CLINUX_SPAWN_CHDIR);

  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  execve(arguments->path, arguments->argv, arguments->envp);
  return child_failed(arguments, CLINUX_SPAWN_EXEC);
}

struct clinux_spawn_result clinux_spawn(
    const char *path, char *const argv[], char *const envp[], const char *directory, int input, int output,
    int error, int oom_score_adj) {
  char score[16] = "";
  if (oom_score_adj >= -1000) snprintf(score, sizeof score, "%d", oom_score_adj);
  struct child_arguments arguments = {
      .path = path,
      .argv = argv,
      .envp = envp,
      .directory = directory,
      .descriptors = {input, output, error},
      .oom_score_adj = score,
      .parent = getpid(),
      .stage = CLINUX_SPAWN_OK,
  };
  struct clinux_spawn_result result = {.pid = -1, .pidfd = -1, .stage = CLINUX_SPAWN_CLONE};

  pthread_mutex_lock(&children_lock);
  const size_t stack_size = 64 * 1024;
  void *stack = MAP_FAILED;
  if (has_room_for_child()) {
    stack = mmap(NULL, stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  }
  if (stack == MAP_FAILED) {
    result.error = errno;
    pthread_mutex_unlock(&children_lock);
    return result;
  }

  // A handler of the parent must not run in the child while they share memory.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int pidfd = -1;
  pid_t pid = clone(
      child_main, (char *)stack + stack_size, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &arguments,
      &pidfd);
  int clone_error = errno;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  munmap(stack, stack_size);

  int is_running = pid >= 0 && arguments.stage == CLINUX_SPAWN_OK;
  if (is_running) children[child_count++] = pid;
  if (pid >= 0 && !is_running) {
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    close(pidfd);
  }
  pthread_mutex_unlock(&children_lock);

  if (pid < 0) {
    result.error = clone_error;
    return result;
  }
  if (!is_running) {
    result.stage = arguments.stage;
    result.error = arguments.error;
    return result;
  }
  result.pid = pid;
  result.pidfd = pidfd;
  result.stage = CLINUX_SPAWN_OK;
  return result;
}

int clinux_pidfd_send_signal(int pidfd, int signal) {
  return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0u) < 0 ? errno : 0;
}

int clinux_pidfd_open(pid_t pid) {
  int pidfd = (int)syscall(SYS_pidfd_open, pid, 0u);
  return pidfd < 0 ? -errno : pidfd;
}

int clinux_pidfd_reap(int pidfd, int *code, int *status) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  // The number may belong to the next child as soon as this one is reaped.
  pthread_mutex_lock(&children_lock);
  int result = waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG) < 0 ? -errno : info.si_pid != 0;
  size_t index = result == 1 ? index_of_child(info.si_pid) : child_count;
  if (index < child_count) children[index] = children[--child_count];
  pthread_mutex_unlock(&children_lock);
  if (result == 1) {
    *code = info.si_code;
    *status = info.si_status;
  }
  return result;
}

void clinux_reap_orphan(pid_t pid) {
  pthread_mutex_lock(&children_lock);
  if (index_of_child(pid) == child_count) waitpid(pid, NULL, WNOHANG);
  pthread_mutex_unlock(&children_lock);
}

int clinux_become_subreaper(void) {
  return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? errno : 0;
}

int clinux_pipe(int ends[2]) {
  return pipe2(ends, O_CLOEXEC) < 0 ? errno : 0;
}

int clinux_wakeup(void) {
  int wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return wakeup < 0 ? -errno : wakeup;
}

void clinux_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }
