#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/// Event bits of epoll(7), as plain integers so that Swift sees them as constants.
enum {
    CLINUX_EPOLLIN = 0x001,
    CLINUX_EPOLLOUT = 0x004,
    CLINUX_EPOLLERR = 0x008,
    CLINUX_EPOLLHUP = 0x010,
    CLINUX_EPOLLRDHUP = 0x2000,
};

/// One readiness report: the token given at registration and the bits that are ready.
typedef struct {
    uint64_t token;
    uint32_t events;
} clinux_ready;

/// All functions return -1 and set errno on failure.

int clinux_epoll_create(void);
/// Registers `fd` for input; level-triggered.
int clinux_epoll_add_input(int epoll, int fd, uint64_t token);
/// Registers `fd` for input and hang-up; edge-triggered.
int clinux_epoll_add_edge(int epoll, int fd, uint64_t token);
/// Turns reports of room for output on (1) or off (0) for `fd`, which is edge-triggered. What is ready at that moment
/// is reported, too.
int clinux_epoll_set_edge_output(int epoll, int fd, uint64_t token, int enabled);
/// Turns reports for `fd` off (0) or on for input (1), level-triggered.
int clinux_epoll_set_input(int epoll, int fd, uint64_t token, int enabled);
int clinux_epoll_remove(int epoll, int fd);
/// Waits for at most `timeout_ms` (-1: without limit). An interruption by a signal counts as no report.
int clinux_epoll_wait(int epoll, clinux_ready *ready, int capacity, int timeout_ms);

int clinux_eventfd(void);
void clinux_eventfd_signal(int fd);
void clinux_eventfd_clear(int fd);

/// Creates, binds and listens on a stream socket at `path` (must not exist), with permission bits `mode`.
int clinux_listen_unix(const char *path, int backlog, unsigned int mode);
/// Connects to the stream socket at `path` without waiting; returns the descriptor.
int clinux_connect_unix(const char *path);
/// Sends one datagram to the unix socket at `path`, without waiting; `@` at its beginning stands for NUL, the sign of
/// an abstract address.
int clinux_send_datagram(const char *path, const void *bytes, size_t length);
/// Accepts without waiting; the new descriptor is close-on-exec and in blocking mode.
int clinux_accept(int listener);
/// 1 if `fd` is a listening stream socket, 0 if not.
int clinux_is_listening(int fd);

ssize_t clinux_recv_nowait(int fd, void *buffer, size_t length);
/// Sends `head` and `body` in one call without waiting; SIGPIPE is never raised.
ssize_t clinux_send2_nowait(int fd, const void *head, size_t head_length, const void *body, size_t body_length);
/// Bytes that were sent and not yet taken by the peer.
int clinux_unsent_bytes(int fd);
/// Bounds how long a blocking send may take.
int clinux_set_send_timeout(int fd, unsigned int seconds);

/// An anonymous file in memory, close-on-exec.
int clinux_memory_file(const char *name);
int clinux_set_cloexec(int fd);
/// Raises the soft limit of open files to the hard limit; returns the limit that holds then.
long clinux_raise_file_limit(void);
