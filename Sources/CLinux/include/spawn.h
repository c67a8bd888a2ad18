#pragma once

#include <signal.h>
#include <stdint.h>
#include <sys/types.h>

/// What the child could not do; `CLINUX_SPAWN_CLONE` means that there was no child at all.
enum clinux_spawn_stage {
  CLINUX_SPAWN_OK = 0,
  CLINUX_SPAWN_CLONE = 1,
  CLINUX_SPAWN_SETUP = 2,
  CLINUX_SPAWN_CHDIR = 3,
  CLINUX_SPAWN_EXEC = 4,
};

struct clinux_spawn_result {
  pid_t pid;
  int pidfd;
  int stage;
  int error;
};

/// Starts a program as the leader of a new session, with only the three given descriptors open, all signals at
/// their defaults and unblocked, and SIGKILL for it as soon as the calling *thread* ends.
///
/// `path`, `argv` and `envp` are as for execve; `directory` is its working directory; `oom_score_adj` is written
/// to /proc (-1001 leaves it alone). The caller keeps its own copies of the descriptors. On failure the child is
/// already reaped, `pidfd` is -1, `stage` and `error` (an errno) say why. Otherwise `clinux_pidfd_reap` must reap it.
struct clinux_spawn_result clinux_spawn(
    const char *path, char *const argv[], char *const envp[], const char *directory, int input, int output,
    int error, int oom_score_adj);

/// Sends a signal to the process of a pidfd. Returns 0 or an errno.
int clinux_pidfd_send_signal(int pidfd, int signal);

/// Opens a pidfd, close-on-exec. Returns it or a negative errno.
int clinux_pidfd_open(pid_t pid);

/// Reaps the child of a pidfd if it has ended. Returns 1 (with `code` and `status` as in siginfo_t), 0 if it
/// still runs, or a negative errno.
int clinux_pidfd_reap(int pidfd, int *code, int *status);

/// Reaps a child that has ended, unless `clinux_spawn` started it: its status belongs to who called that.
void clinux_reap_orphan(pid_t pid);

/// Makes orphaned descendants become children of this process. Returns 0 or an errno.
int clinux_become_subreaper(void);

/// Makes a pipe whose ends are closed on exec. Returns 0 or an errno.
int clinux_pipe(int ends[2]);

/// Makes the descriptor with which another thread is woken, closed on exec and not blocking. Returns it or a
/// negative errno.
int clinux_wakeup(void);

/// Names the calling thread, for ps and debuggers.
void clinux_name_thread(const char *name);
