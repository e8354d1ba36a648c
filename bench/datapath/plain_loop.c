/* What upstream's udp backend does per packet, and nothing else: the stand-in where its binary is
 * not at hand.
 *
 *     plain_loop TUN LOCAL_ADDRESS PORT NETWORK/LENGTH=PEER
 *
 * One thread; poll, then one read and one sendto per packet, one recv and one write, first-match
 * look-up, TTL decremented at both ends; default socket buffers. Real daemons are slower: theirs
 * share the process with Go and drop more in the receiving socket. So ratios against this loop are
 * smaller than ratios against upstream, and tables name it for what it is. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int ttl_decrement(uint8_t *p)
{
    uint32_t sum = (uint32_t)(p[10] << 8 | p[11]) + 0x100;

    if (--p[8] == 0)
        return 0;
    sum = (sum & 0xffff) + (sum >> 16);
    p[10] = (uint8_t)(sum >> 8);
    p[11] = (uint8_t)sum;
    return 1;
}

static int fail(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    static uint8_t buffer[65536];
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    struct sockaddr_in local = {.sin_family = AF_INET}, peer = {.sin_family = AF_INET};
    uint32_t network, mask;
    char *slash, *equals;
    int tun, udp;

    if (argc != 5 || !(slash = strchr(argv[4], '/')) || !(equals = strchr(argv[4], '='))) {
        fprintf(stderr, "usage: %s TUN LOCAL PORT NETWORK/LENGTH=PEER\n", argv[0]);
        return 2;
    }
    *slash = *equals = 0;
    mask = htonl(0xffffffffu << (32 - atoi(slash + 1)));
    inet_pton(AF_INET, argv[4], &network);
    inet_pton(AF_INET, equals + 1, &peer.sin_addr);
    inet_pton(AF_INET, argv[2], &local.sin_addr);
    local.sin_port = peer.sin_port = htons((uint16_t)atoi(argv[3]));
    strncpy(request.ifr_name, argv[1], IFNAMSIZ - 1);
    tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0)
        return fail("/dev/net/tun");
    udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (udp < 0 || bind(udp, (struct sockaddr *)&local, sizeof local) < 0)
        return fail("bind");
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd ready[2] = {{tun, POLLIN, 0}, {udp, POLLIN, 0}};
        int active;

        if (poll(ready, 2, -1) < 0)
            return fail("poll");
        do {
            ssize_t length = read(tun, buffer, sizeof buffer);
            uint32_t destination;

            active = 0;
            if (length >= 20) {
                active = 1;
                memcpy(&destination, buffer + 16, 4);
                if ((destination & mask) == network && ttl_decrement(buffer))
                    (void)!sendto(udp, buffer, (size_t)length, 0, (struct sockaddr *)&peer,
                                  sizeof peer);
            }
            length = recv(udp, buffer, sizeof buffer, 0);
            if (length >= 20) {
                active = 1;
                if (ttl_decrement(buffer))
                    (void)!write(tun, buffer, (size_t)length);
            }
        } while (active);
    }
}
