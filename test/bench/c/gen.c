/* The guest's side of the benchmark: full exchanges, windows of them, ARP and
 * neighbour solicitations, and the time from exec to the first OFFER.
 *
 * usage: gen exchange IFACE MAC N          -> n p50_ns p99_ns max_ns lost
 *        gen rate     IFACE MAC N WINDOW   -> n per_second lost
 *        gen arp      IFACE MAC N GATEWAY  -> n p50_ns p99_ns max_ns lost
 *        gen arprate  IFACE MAC N GATEWAY  -> n per_second lost
 *        gen ns       IFACE MAC N          -> n p50_ns p99_ns max_ns lost
 *        gen blast    IFACE MAC N GW_MAC   -> n per_second 0   (UDP that is none of a responder's business)
 *        gen first    IFACE MAC NETNS COMMAND...  -> ns from exec to the first OFFER, pid of the command
 *        gen crowd    N FILE NETNS -> ns from the first exec until all N have offered, pids;
 *                     FILE has a line "IFACE MAC COMMAND..." for each
 * All on one line; exit 1 when something was lost or did not come in time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int s;
static uint8_t mac[6], offer_ip[4], server_id[4], buf[2048];

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void die(const char *m) { perror(m); exit(2); }
static void put16(uint8_t *p, uint16_t v) { p[0] = v >> 8; p[1] = v; }
static void put32(uint8_t *p, uint32_t v) { put16(p, v >> 16); put16(p + 2, v); }
static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | p[1] << 16 | p[2] << 8 | p[3]; }

static uint32_t sum(const uint8_t *p, int n, uint32_t c)
{
	for (; n > 1; n -= 2, p += 2)
		c += p[0] << 8 | p[1];
	if (n)
		c += p[0] << 8;
	return c;
}

static uint16_t fold(uint32_t c)
{
	while (c >> 16)
		c = (c & 0xffff) + (c >> 16);
	return ~c & 0xffff;
}

static void parse_mac(const char *t, uint8_t *m)
{
	if (sscanf(t, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
		exit(2);
}

/* dhcp builds a DISCOVER (type 1) or the REQUEST (3) that follows the last OFFER. */
static int dhcp(uint8_t *f, int type, uint32_t xid)
{
	uint8_t *b = f + 42, *p = b + 240;

	memset(f, 0, 342);
	memset(f, 255, 6);
	memcpy(f + 6, mac, 6);
	put16(f + 12, 0x0800);
	b[0] = 1; b[1] = 1; b[2] = 6;
	put32(b + 4, xid);
	memcpy(b + 28, mac, 6);
	put32(b + 236, 0x63825363);
	*p++ = 53; *p++ = 1; *p++ = type;
	*p++ = 61; *p++ = 7; *p++ = 1; memcpy(p, mac, 6); p += 6;
	*p++ = 55; *p++ = 8; memcpy(p, "\x01\x79\x03\x06\x0f\x1a\x0c\x33", 8); p += 8;
	if (type == 3) {
		*p++ = 50; *p++ = 4; memcpy(p, offer_ip, 4); p += 4;
		*p++ = 54; *p++ = 4; memcpy(p, server_id, 4); p += 4;
	}
	*p++ = 255;
	uint8_t *ip = f + 14, *u = f + 34;
	ip[0] = 0x45; ip[8] = 64; ip[9] = 17;
	put16(ip + 2, 328);
	memset(ip + 16, 255, 4);
	put16(ip + 10, fold(sum(ip, 20, 0)));
	put16(u, 68); put16(u + 2, 67); put16(u + 4, 308);
	put16(u + 6, fold(sum(u, 308, sum(ip + 12, 8, 17 + 308))));
	return 342;
}

/* reply reads one frame and, if it is a DHCP reply to us, gives its type and xid. */
static int reply(int timeout_ms, uint32_t *xid)
{
	struct pollfd p = {s, POLLIN, 0};
	for (;;) {
		int r = poll(&p, 1, timeout_ms);
		if (r == 0) return 0;
		int n = recv(s, buf, sizeof buf, MSG_DONTWAIT);
		uint8_t *b = buf + 42;
		if (n < 42 + 244 || b[0] != 2 || memcmp(b + 28, mac, 6))
			continue;
		*xid = get32(b + 4);
		int type = 0;
		for (int o = 240; o + 2 < n - 42 && b[o] != 255; o += 2 + b[o + 1]) {
			if (b[o] == 0) { o--; continue; }
			if (b[o] == 53) type = b[o + 2];
			if (b[o] == 54) memcpy(server_id, b + o + 2, 4);
		}
		if (type == 2) memcpy(offer_ip, b + 16, 4);
		return type;
	}
}

static void xmit(uint8_t *f, int n)
{
	while (send(s, f, n, 0) < 0)
		if (errno != ENOBUFS && errno != EAGAIN && errno != EINTR)
			die("send");
}

static int cmp(const void *a, const void *b)
{
	int64_t x = *(int64_t *)a, y = *(int64_t *)b;
	return x < y ? -1 : x > y;
}

static int report(int64_t *t, int n, int lost)
{
	qsort(t, n, sizeof *t, cmp);
	printf("%d %lld %lld %lld %d\n", n, n ? (long long)t[n / 2] : 0, n ? (long long)t[n - 1 - n / 100] : 0, n ? (long long)t[n - 1] : 0, lost);
	return lost > 0;
}

static int exchange(int n)
{
	int64_t *t = calloc(n, sizeof *t);
	uint8_t f[342];
	uint32_t x, xid = now();
	int ok = 0, lost = 0;

	for (int i = 0; i < n; i++, xid++) {
		int64_t t0 = now();
		int got = 0;
		xmit(f, dhcp(f, 1, xid));
		while ((got = reply(1000, &x)) && !(got == 2 && x == xid));
		if (got) {
			xmit(f, dhcp(f, 3, xid));
			while ((got = reply(1000, &x)) && !(got == 5 && x == xid));
		}
		if (got) t[ok++] = now() - t0;
		else lost++;
	}
	return report(t, ok, lost);
}

/* rate keeps WINDOW exchanges in flight; each OFFER is answered by its REQUEST,
 * each ACK starts the next. */
static int rate(int n, int window)
{
	uint8_t f[342];
	uint32_t x, base = now();
	int sent = 0, done = 0;
	int64_t t0 = now();

	for (; sent < window && sent < n; sent++)
		xmit(f, dhcp(f, 1, base + sent));
	while (done < n) {
		int got = reply(1000, &x);
		if (!got) break;
		if (got == 2) xmit(f, dhcp(f, 3, x));
		if (got == 5) {
			done++;
			if (sent < n) { xmit(f, dhcp(f, 1, base + sent)); sent++; }
		}
	}
	printf("%d %.0f %d\n", done, done / ((now() - t0) / 1e9), n - done);
	return done < n;
}

static int arp_frame(uint8_t *f, const uint8_t *gw)
{
	memset(f, 255, 6);
	memcpy(f + 6, mac, 6);
	memcpy(f + 12, "\x08\x06\0\1\x08\0\6\4\0\1", 10);
	memcpy(f + 22, mac, 6);
	memcpy(f + 28, "\xc0\xa8\x01\x1a", 4);
	memset(f + 32, 0, 6);
	memcpy(f + 38, gw, 4);
	return 42;
}

static int ns_frame(uint8_t *f)
{
	static const uint8_t target[16] = {0xfe, 0x80, [15] = 1};
	static const uint8_t group[16] = {0xff, 2, [11] = 1, 0xff, 0, 0, 1};
	memset(f, 0, 86);
	memcpy(f, "\x33\x33\xff\0\0\1", 6);
	memcpy(f + 6, mac, 6);
	put16(f + 12, 0x86dd);
	f[14] = 0x60; put16(f + 18, 32); f[20] = 58; f[21] = 255;
	f[22] = 0xfe; f[23] = 0x80; f[30] = mac[0] ^ 2; f[31] = mac[1]; f[32] = mac[2]; f[33] = 255; f[34] = 254; memcpy(f + 35, mac + 3, 3);
	memcpy(f + 38, group, 16);
	f[54] = 135;
	memcpy(f + 62, target, 16);
	f[78] = 1; f[79] = 1; memcpy(f + 80, mac, 6);
	put16(f + 56, fold(sum(f + 54, 32, sum(f + 22, 32, 32 + 58))));
	return 86;
}

static int answered(int v6)
{
	struct pollfd p = {s, POLLIN, 0};
	for (;;) {
		if (poll(&p, 1, 1000) == 0) return 0;
		int n = recv(s, buf, sizeof buf, MSG_DONTWAIT);
		if (!v6 && n >= 42 && buf[12] == 8 && buf[13] == 6 && buf[21] == 2) return 1;
		if (v6 && n >= 78 && buf[12] == 0x86 && buf[54] == 136) return 1;
	}
}

static int ask(int n, uint8_t *f, int len, int v6, int window)
{
	int64_t *t = calloc(n, sizeof *t), t0 = now();
	int ok = 0, sent = 0;

	if (window == 1) {
		for (int i = 0; i < n; i++) {
			int64_t b = now();
			xmit(f, len);
			if (answered(v6)) t[ok++] = now() - b;
		}
		return report(t, ok, n - ok);
	}
	for (; sent < window; sent++) xmit(f, len);
	while (ok < n && answered(v6)) {
		ok++;
		if (sent < n) { xmit(f, len); sent++; }
	}
	printf("%d %.0f %d\n", ok, ok / ((now() - t0) / 1e9), n - ok);
	return ok < n;
}

static int blast(int n, const uint8_t *gw)
{
	uint8_t f[1442] = {0};
	int64_t t0 = now();
	memcpy(f, gw, 6);
	memcpy(f + 6, mac, 6);
	put16(f + 12, 0x0800);
	f[14] = 0x45; put16(f + 16, 1428); f[22] = 64; f[23] = 17;
	memcpy(f + 26, "\xc0\xa8\x01\x1a\xcb\0\x71\x09", 8);
	put16(f + 24, fold(sum(f + 14, 20, 0)));
	put16(f + 34, 40000); put16(f + 36, 9); put16(f + 38, 1408);
	for (int i = 0; i < n; i++) xmit(f, sizeof f);
	printf("%d %.0f 0\n", n, n / ((now() - t0) / 1e9));
	return 0;
}

/* run is exec, after "bounded" with what package launch starts ours with: CAP_SETGID,
 * CAP_SETUID and CAP_NET_RAW to inherit, an empty bounding set, no_new_privs. */
static void run(char **cmd)
{
	if (strcmp(cmd[0], "bounded") == 0) {
		struct __user_cap_header_struct h = {.version = _LINUX_CAPABILITY_VERSION_3};
		struct __user_cap_data_struct d[2] = {{0}};
		if (syscall(SYS_capget, &h, d)) _exit(127);
		d[0].inheritable = 1 << CAP_SETGID | 1 << CAP_SETUID | 1 << CAP_NET_RAW;
		d[1].inheritable = 0;
		if (syscall(SYS_capset, &h, d)) _exit(127);
		for (int c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
			prctl(PR_CAPBSET_DROP, c, 0, 0, 0);
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		cmd++;
	}
	execv(cmd[0], cmd);
}

static int first(const char *netns, char **cmd)
{
	uint8_t f[342];
	uint32_t x;
	int fd = open(netns, O_RDONLY | O_CLOEXEC), i;
	if (fd < 0) die(netns);
	int64_t t0 = now();
	pid_t pid = vfork();
	if (pid == 0) {
		if (setns(fd, CLONE_NEWNET)) _exit(127);
		int null = open("/dev/null", O_RDWR);
		dup2(null, 0); dup2(null, 1); dup2(null, 2);
		run(cmd);
		_exit(127);
	}
	/* one DISCOVER per 200 µs until the first OFFER: what is asked before the
	 * socket is bound is lost, so the resolution is that interval */
	for (i = 0; i < 50000; i++) {
		struct pollfd p = {s, POLLIN, 0};
		struct timespec w = {0, 200000};
		xmit(f, dhcp(f, 1, 0x51000000 + i));
		if (ppoll(&p, 1, &w, 0) > 0 && reply(0, &x) == 2) break;
	}
	printf("%lld %d\n", (long long)(now() - t0), pid);
	return i == 50000;
}

static int open_socket(const char *ifname);

/* crowd starts N servers at once and asks each until it has offered. */
static int crowd(int n, const char *file, const char *netns)
{
	struct { int sock; uint8_t mac[6]; char *argv[64]; pid_t pid; int ok; } *v = calloc(n, sizeof *v);
	char *line = 0, *save, *w;
	size_t cap = 0;
	uint8_t f[342];
	uint32_t x;
	FILE *in = fopen(file, "r");
	int fd = open(netns, O_RDONLY | O_CLOEXEC), null = open("/dev/null", O_RDWR), left = n, round;

	if (!in || fd < 0) die(file);
	for (int i = 0; i < n; i++) {
		if (getline(&line, &cap, in) < 0) die("crowd file is short");
		char *l = strdup(line);
		l[strcspn(l, "\n")] = 0;
		v[i].sock = open_socket(strtok_r(l, " ", &save));
		parse_mac(strtok_r(0, " ", &save), v[i].mac);
		for (int k = 0; k < 63 && (w = strtok_r(0, " ", &save)); k++) v[i].argv[k] = w;
	}
	int64_t t0 = now();
	for (int i = 0; i < n; i++) {
		v[i].pid = vfork();
		if (v[i].pid == 0) {
			if (setns(fd, CLONE_NEWNET)) _exit(127);
			dup2(null, 0); dup2(null, 1); dup2(null, 2);
			run(v[i].argv);
			_exit(127);
		}
	}
	for (round = 0; left && round < 20000; round++) {
		struct timespec t = {0, 1000000};
		for (int i = 0; i < n; i++) {
			if (v[i].ok) continue;
			s = v[i].sock;
			memcpy(mac, v[i].mac, 6);
			if (round % 4 == 0) xmit(f, dhcp(f, 1, 0x52000000 + round));
			if (reply(0, &x) == 2) { v[i].ok = 1; left--; }
		}
		if (left) nanosleep(&t, 0);
	}
	printf("%lld", (long long)(now() - t0));
	for (int i = 0; i < n; i++) printf(" %d", v[i].pid);
	puts("");
	return left > 0;
}

static int open_socket(const char *ifname)
{
	/* only what a server answers: DHCP to port 68, ARP replies, neighbour advertisements */
	static struct sock_filter flt[] = {
		{0x28, 0, 0, 12}, {0x15, 7, 0, 0x0806}, {0x15, 0, 4, 0x0800}, {0x30, 0, 0, 23}, {0x15, 0, 5, 17},
		{0x28, 0, 0, 36}, {0x15, 2, 3, 68}, {0x15, 0, 2, 0x86dd}, {0x30, 0, 0, 54}, {0x06, 0, 0, 0xffff}, {0x06, 0, 0, 0},
	};
	struct sock_fprog prog = {sizeof flt / sizeof *flt, flt};
	struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_protocol = htons(3)};
	struct packet_mreq mr = {.mr_type = PACKET_MR_ALLMULTI};
	struct ifreq ifr = {0};
	int big = 8 << 20, one = 1;
	int fd = socket(AF_PACKET, SOCK_RAW, 0);

	if (fd < 0) die("socket");
	strncpy(ifr.ifr_name, ifname, IFNAMSIZ - 1);
	if (ioctl(fd, SIOCGIFINDEX, &ifr)) die(ifname);
	mr.mr_ifindex = a.sll_ifindex = ifr.ifr_ifindex;
	setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &big, sizeof big);
	setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &mr, sizeof mr);
	setsockopt(fd, SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, &one, sizeof one);
	if (bind(fd, (void *)&a, sizeof a)) die("bind");
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
}

int main(int c, char **v)
{
	uint8_t f[128], x[6];

	if (c < 5) return 2;
	if (!strcmp(v[1], "crowd")) return crowd(atoi(v[2]), v[3], v[4]);
	s = open_socket(v[2]);
	parse_mac(v[3], mac);
	int n = atoi(v[4]);
	if (!strcmp(v[1], "exchange")) return exchange(n);
	if (!strcmp(v[1], "rate")) return rate(n, atoi(v[5]));
	if (!strcmp(v[1], "arp") || !strcmp(v[1], "arprate")) {
		uint8_t gw[4];
		inet_pton(AF_INET, v[5], gw);
		return ask(n, f, arp_frame(f, gw), 0, v[1][3] ? 64 : 1);
	}
	if (!strcmp(v[1], "ns")) return ask(n, f, ns_frame(f), 1, 1);
	if (!strcmp(v[1], "blast")) { parse_mac(v[5], x); return blast(n, x); }
	if (!strcmp(v[1], "first")) return first(v[4], v + 5);
	return 2;
}
