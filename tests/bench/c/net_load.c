// SPDX-License-Identifier: Apache-2.0
/* Real sockets, as fast as one client goes, for tests/bench/sockets.py.
 *
 *	net_load serve PORT		answers each request; "c" also closes
 *	net_load new ADDRESS PORT MS	connections with one request each
 *	net_load keep ADDRESS PORT MS	requests on one connection
 *	net_load udp ADDRESS PORT MS	connected UDP sockets; nothing is sent
 *
 * A client prints how many it did and the nanoseconds that they took.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void check(int failed, const char *what)
{
	if (failed) {
		perror(what);
		exit(1);
	}
}

static long long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static _Noreturn void serve(int port)
{
	struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	check(bind(listener, (void *)&any, sizeof(any)), "bind");
	check(listen(listener, 128), "listen");
	for (;;) {
		int client = accept(listener, NULL, NULL);
		char request;

		if (client < 0)
			continue;
		setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		while (read(client, &request, 1) == 1 && write(client, &request, 1) == 1 &&
		       request != 'c')
			;
		close(client);	/* first, so that the client keeps no port in TIME_WAIT */
	}
}

static socklen_t parse(const char *address, int port, struct sockaddr_storage *ret)
{
	struct sockaddr_in6 *ipv6 = (void *)ret;
	struct sockaddr_in *ipv4 = (void *)ret;

	memset(ret, 0, sizeof(*ret));
	if (inet_pton(AF_INET, address, &ipv4->sin_addr) == 1) {
		ipv4->sin_family = AF_INET;
		ipv4->sin_port = htons(port);
		return sizeof(*ipv4);
	}
	check(inet_pton(AF_INET6, address, &ipv6->sin6_addr) != 1, address);
	ipv6->sin6_family = AF_INET6;
	ipv6->sin6_port = htons(port);
	return sizeof(*ipv6);
}

static int open_to(const struct sockaddr_storage *to, socklen_t length, int type)
{
	int made = socket(to->ss_family, type, 0), on = 1;

	check(made < 0, "socket");
	if (type == SOCK_STREAM)
		setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	check(connect(made, (const void *)to, length), "connect");
	return made;
}

static void ask(int sock, char request)
{
	check(write(sock, &request, 1) != 1, "write");
	check(read(sock, &request, 1) != 1, "read");
}

int main(int argc, char **argv)
{
	struct sockaddr_storage to;
	socklen_t length;
	long long begin, end;
	long count = 0;
	int kept = -1, made;
	char rest;

	if (argc == 3 && !strcmp(argv[1], "serve"))
		serve(atoi(argv[2]));
	if (argc != 5)
		return 2;
	length = parse(argv[2], atoi(argv[3]), &to);
	if (argv[1][0] == 'k')
		kept = open_to(&to, length, SOCK_STREAM);
	begin = now();
	end = begin + atoll(argv[4]) * 1000000;
	for (; now() < end; count++) {
		if (kept >= 0) {
			ask(kept, 'k');
			continue;
		}
		made = open_to(&to, length, argv[1][0] == 'u' ? SOCK_DGRAM : SOCK_STREAM);
		if (argv[1][0] == 'n') {
			ask(made, 'c');
			check(read(made, &rest, 1) != 0, "end of connection");
		}
		close(made);
	}
	printf("%ld %lld\n", count, now() - begin);
	return 0;
}
