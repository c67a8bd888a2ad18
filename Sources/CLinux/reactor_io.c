#define _GNU_SOURCE
#include "reactor_io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

_Static_assert(CLINUX_EPOLLIN == EPOLLIN && CLINUX_EPOLLOUT == EPOLLOUT && CLINUX_EPOLLERR == EPOLLERR
                   && CLINUX_EPOLLHUP == EPOLLHUP && CLINUX_EPOLLRDHUP == EPOLLRDHUP,
               "the constants of epoll(7)");

int clinux_epoll_create(void) { return epoll_create1(EPOLL_CLOEXEC); }

static int control(int epoll, int operation, int fd, uint64_t token, uint32_t events)
{
    struct epoll_event event = { .events = events, .data.u64 = token };
    return epoll_ctl(epoll, operation, fd, &event);
}

int clinux_epoll_add_input(int epoll, int fd, uint64_t token)
{
    return control(epoll, EPOLL_CTL_ADD, fd, token, EPOLLIN);
}

int clinux_epoll_add_edge(int epoll, int fd, uint64_t token)
{
    return control(epoll, EPOLL_CTL_ADD, fd, token, EPOLLIN | EPOLLRDHUP | EPOLLET);
}

int clinux_epoll_set_edge_output(int epoll, int fd, uint64_t token, int enabled)
{
    uint32_t output = enabled ? EPOLLOUT : 0;
    return control(epoll, EPOLL_CTL_MOD, fd, token, EPOLLIN | EPOLLRDHUP | EPOLLET | output);
}

int clinux_epoll_set_input(int epoll, int fd, uint64_t token, int enabled)
{
    return control(epoll, EPOLL_CTL_MOD, fd, token, enabled ? EPOLLIN : 0);
}

int clinux_epoll_remove(int epoll, int fd) { return epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL); }

int clinux_epoll_wait(int epoll, clinux_ready *ready, int capacity, int timeout_ms)
{
    struct epoll_event events[256];
    int wanted = capacity < 256 ? capacity : 256;
    int count = epoll_wait(epoll, events, wanted, timeout_ms);
    if (count < 0) return errno == EINTR ? 0 : -1;
    for (int i = 0; i < count; i++) {
        ready[i].token = events[i].data.u64;
        ready[i].events = events[i].events;
    }
    return count;
}

int clinux_eventfd(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

void clinux_eventfd_signal(int fd)
{
    uint64_t one = 1;
    // The only possible failure is EAGAIN at the counter's maximum, and then a wake-up is pending anyway.
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) { }
}

void clinux_eventfd_clear(int fd)
{
    uint64_t count;
    while (read(fd, &count, sizeof count) < 0 && errno == EINTR) { }
}

static int unix_address(const char *path, struct sockaddr_un *address)
{
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address->sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, path, length + 1);
    return 0;
}

static int close_with_error(int fd)
{
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

int clinux_listen_unix(const char *path, int backlog, unsigned int mode)
{
    struct sockaddr_un address;
    if (unix_address(path, &address) < 0) return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) return close_with_error(fd);
    // Nobody can connect before listen(), so the mode holds from the first connection on.
    if (chmod(path, mode) < 0 || listen(fd, backlog) < 0) {
        int error = errno;
        unlink(path);
        errno = error;
        return close_with_error(fd);
    }
    return fd;
}

int clinux_send_datagram(const char *path, const void *bytes, size_t length)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t path_length = strlen(path);
    if (path_length == 0 || path_length > sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(address.sun_path, path, path_length);
    if (path[0] == '@') address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_length);
    if (sendto(fd, bytes, length, MSG_NOSIGNAL, (struct sockaddr *)&address, size) < 0) return close_with_error(fd);
    close(fd);
    return 0;
}

int clinux_connect_unix(const char *path)
{
    struct sockaddr_un address;
    if (unix_address(path, &address) < 0) return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) return close_with_error(fd);
    return fd;
}

int clinux_accept(int listener)
{
    int fd;
    do fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    return fd;
}

int clinux_is_listening(int fd)
{
    int value = 0;
    socklen_t length = sizeof value;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length) < 0) return -1;
    return value != 0;
}

ssize_t clinux_recv_nowait(int fd, void *buffer, size_t length)
{
    ssize_t count;
    do count = recv(fd, buffer, length, MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    return count;
}

ssize_t clinux_send2_nowait(int fd, const void *head, size_t head_length, const void *body, size_t body_length)
{
    struct iovec parts[2] = {
        { .iov_base = (void *)head, .iov_len = head_length },
        { .iov_base = (void *)body, .iov_len = body_length },
    };
    struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
    ssize_t count;
    do count = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (count < 0 && errno == EINTR);
    return count;
}

int clinux_unsent_bytes(int fd)
{
    int count = 0;
    return ioctl(fd, SIOCOUTQ, &count) < 0 ? -1 : count;
}

int clinux_set_send_timeout(int fd, unsigned int seconds)
{
    struct timeval timeout = { .tv_sec = seconds };
    return setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

int clinux_memory_file(const char *name) { return memfd_create(name, MFD_CLOEXEC); }

int clinux_set_cloexec(int fd)
{
    int flags = fcntl(fd, F_GETFD);
    return flags < 0 ? -1 : fcntl(fd, F_SETFD, flags | FD_CLOEXEC);
}

long clinux_raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -1;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = { .rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max };
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
    }
    return limit.rlim_cur > 0x7fffffff ? 0x7fffffff : (long)limit.rlim_cur;
}

