/* A minimal responder in C on the same kind of socket as ours: the yardstick
 * of the tables that bench prints. It knows one guest, has no configuration
 * and validates nothing beyond what it needs not to crash.
 *
 * usage: responder IFACE GUEST_MAC GUEST_IP GATEWAY_IP
 */
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static uint8_t gmac[6], rmac[6], gip[4], rip[4], in[2048], out[2048];
static const uint8_t rll[16] = {0xfe, 0x80, [15] = 1};

static uint32_t sum(const uint8_t *p, int n, uint32_t s)
{
	for (; n > 1; n -= 2, p += 2)
		s += p[0] << 8 | p[1];
	if (n)
		s += p[0] << 8;
	return s;
}

static uint16_t fold(uint32_t s)
{
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return ~s & 0xffff;
}

static void put16(uint8_t *p, uint16_t v) { p[0] = v >> 8; p[1] = v; }

static int arp(int n)
{
	if (n < 42 || memcmp(in + 20, "\0\1", 2) || memcmp(in + 38, rip, 4))
		return 0;
	memcpy(out, in + 6, 6);
	memcpy(out + 6, rmac, 6);
	memcpy(out + 12, in + 12, 8);
	memcpy(out + 20, "\0\2", 2);
	memcpy(out + 22, rmac, 6);
	memcpy(out + 28, rip, 4);
	memcpy(out + 32, in + 22, 10);
	return 42;
}

static int dhcp(int n)
{
	int type = 0, o, len;
	uint8_t *b = in + 42, *r = out + 42, *p;
	static const uint8_t cookie[4] = {99, 130, 83, 99};

	if (n < 42 + 244 || b[0] != 1 || memcmp(b + 28, gmac, 6))
		return 0;
	for (o = 240; o + 2 < n - 42 && b[o] != 255;) {
		if (b[o] == 0) { o++; continue; }
		if (b[o] == 53) type = b[o + 2];
		o += 2 + b[o + 1];
	}
	if (type != 1 && type != 3)
		return 0;
	memset(r, 0, 300);
	r[0] = 2; r[1] = 1; r[2] = 6;
	memcpy(r + 4, b + 4, 4);
	memcpy(r + 10, b + 10, 2);
	memcpy(r + 16, gip, 4);
	memcpy(r + 28, b + 28, 16);
	memcpy(r + 236, cookie, 4);
	p = r + 240;
#define OPT(code, l, d) (*p++ = code, *p++ = l, memcpy(p, d, l), p += l)
	OPT(53, 1, type == 1 ? "\2" : "\5");
	OPT(54, 4, rip);
	OPT(51, 4, "\0\0\x0e\x10");
	OPT(58, 4, "\0\0\x07\x08");
	OPT(59, 4, "\0\0\x0c\x4e");
	OPT(1, 4, "\377\377\377\377");
	OPT(3, 4, rip);
	*p++ = 121; *p++ = 14; *p++ = 32; memcpy(p, rip, 4); memset(p + 4, 0, 5); memcpy(p + 9, rip, 4); p += 13;
	OPT(6, 4, "\x09\x09\x09\x09");
	OPT(26, 2, "\x05\xdc");
	*p++ = 255;
	len = p - r < 300 ? 300 : p - r;
	memcpy(out, gmac, 6);
	memcpy(out + 6, rmac, 6);
	put16(out + 12, 0x0800);
	uint8_t *ip = out + 14, *u = out + 34;
	memset(ip, 0, 20);
	ip[0] = 0x45; ip[8] = 64; ip[9] = 17;
	put16(ip + 2, 28 + len);
	memcpy(ip + 12, rip, 4);
	if (b[10] & 0x80) { memset(ip + 16, 255, 4); memset(out, 255, 6); }
	else memcpy(ip + 16, gip, 4);
	put16(ip + 10, fold(sum(ip, 20, 0)));
	put16(u, 67); put16(u + 2, 68); put16(u + 4, 8 + len); put16(u + 6, 0);
	put16(u + 6, fold(sum(u, 8 + len, sum(ip + 12, 8, 17 + 8 + len))));
	return 42 + len;
}

static int nd(int n)
{
	if (n < 78 || in[54] != 135 || memcmp(in + 62, rll, 16))
		return 0;
	memcpy(out, in + 6, 6);
	memcpy(out + 6, rmac, 6);
	memcpy(out + 12, in + 12, 6);
	put16(out + 18, 32);
	out[20] = 58; out[21] = 255;
	memcpy(out + 22, rll, 16);
	memcpy(out + 38, in + 22, 16);
	memset(out + 54, 0, 32);
	out[54] = 136; out[58] = 0xe0;
	memcpy(out + 62, rll, 16);
	out[78] = 2; out[79] = 1; memcpy(out + 80, rmac, 6);
	put16(out + 56, fold(sum(out + 54, 32, sum(out + 22, 32, 32 + 58))));
	return 86;
}

static void parse_mac(const char *s, uint8_t *m)
{
	if (sscanf(s, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", m, m + 1, m + 2, m + 3, m + 4, m + 5) != 6)
		exit(2);
}

int main(int c, char **v)
{
	/* ARP; IPv4 UDP to port 67; IPv6 UDP to port 547; ICMPv6 133-136 */
	static struct sock_filter f[] = {
		{0x28, 0, 0, 12}, {0x15, 13, 0, 0x0806}, {0x15, 0, 5, 0x0800},
		{0x30, 0, 0, 23}, {0x15, 0, 11, 17}, {0x28, 0, 0, 36}, {0x15, 8, 9, 67}, {0x06, 0, 0, 0},
		{0x15, 0, 7, 0x86dd}, {0x30, 0, 0, 20}, {0x15, 0, 2, 58}, {0x30, 0, 0, 54}, {0x35, 2, 3, 133},
		{0x28, 0, 0, 56}, {0x15, 0, 1, 547}, {0x06, 0, 0, 0xffff}, {0x06, 0, 0, 0},
	};
	struct sock_fprog prog = {sizeof f / sizeof *f, f};
	struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_protocol = htons(3)};
	struct packet_mreq mr = {.mr_type = PACKET_MR_ALLMULTI};
	struct ifreq ifr = {0};
	int one = 1, s = socket(AF_PACKET, SOCK_RAW, 0);

	if (c != 5 || s < 0)
		return 2;
	strncpy(ifr.ifr_name, v[1], IFNAMSIZ - 1);
	parse_mac(v[2], gmac);
	inet_pton(AF_INET, v[3], gip);
	inet_pton(AF_INET, v[4], rip);
	if (setsockopt(s, SOL_SOCKET, SO_ATTACH_FILTER, &prog, sizeof prog)) { perror("filter"); return 1; }
	if (ioctl(s, SIOCGIFINDEX, &ifr)) { perror(v[1]); return 1; }
	mr.mr_ifindex = a.sll_ifindex = ifr.ifr_ifindex;
	ioctl(s, SIOCGIFHWADDR, &ifr);
	memcpy(rmac, ifr.ifr_hwaddr.sa_data, 6);
	setsockopt(s, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &mr, sizeof mr);
	setsockopt(s, SOL_PACKET, 23 /* PACKET_IGNORE_OUTGOING */, &one, sizeof one);
	if (bind(s, (void *)&a, sizeof a)) { perror("bind"); return 1; }
	for (;;) {
		int n = recv(s, in, sizeof in, 0), m = 0;
		if (n < 42)
			continue;
		switch (in[12] << 8 | in[13]) {
		case 0x0806: m = arp(n); break;
		case 0x0800: m = dhcp(n); break;
		case 0x86dd: m = nd(n); break;
		}
		if (m)
			send(s, out, m, 0);
	}
}
