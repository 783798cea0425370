/*
 * Writes, as JSON, lists of servers and where libmemcached puts keys on them:
 *
 *	{"Servers": [{"Host": "cache1", "Port": 11211, "Weight": 1}, …], "Picks": [0, …]}
 *
 * Two lines for each length from 1 to 100, of servers without and with weights.
 * Debian's libmemcached aborts at a server more (an assertion in update_continuum).
 * What is random is so by a generator of its own: every run writes the same.
 * make ketama-table runs it.
 */
#include <stdio.h>
#include <stdlib.h>

#include <libmemcached/memcached.h>

enum { LENGTHS = 100, KEYS = 1000 };

static uint32_t state = 1;

/* xorshift32 */
static uint32_t any(void)
{
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

static uint32_t below(uint32_t n) { return any() % n; }

static void check(memcached_return_t rc)
{
	if (rc != MEMCACHED_SUCCESS) {
		fprintf(stderr, "libmemcached: %s\n", memcached_strerror(NULL, rc));
		exit(1);
	}
}

/* Every server of a list has another id, and so another name. */
static void write_server(memcached_st *client, int id, in_port_t port, uint32_t weight)
{
	char host[256];

	switch (below(7)) {
	case 0:
		sprintf(host, "cache%d", id);
		break;
	case 1:
		sprintf(host, "10.0.%d.%d", 1 + id / 100, 1 + id % 100);
		break;
	case 2:
		sprintf(host, "memcached-%d.cache.example.com", id);
		break;
	case 3:
		sprintf(host, "%0*d.example.com", 4 + (int)below(200), id);
		break;
	case 4:
		sprintf(host, "2001:db8::%x", id);
		break;
	case 5: /* as memcached_servers_parse leaves it */
		sprintf(host, "[2001:db8::%x]", id);
		break;
	default:
		sprintf(host, "/run/memcached/%d.sock", id);
		port = 0;
	}
	/* memcached_server_add_with_weight would make port 11211 of 0. */
	if (port == 0)
		check(memcached_server_add_unix_socket_with_weight(client, host, weight));
	else
		check(memcached_server_add_with_weight(client, host, port, weight));
	printf("{\"Host\": \"%s\", \"Port\": %d, \"Weight\": %u}", host, port, weight);
}

static in_port_t choose_port(void)
{
	static const in_port_t ports[] = {1, 80, 1121, 11210, 11212, 22122, 65535};

	return below(2) ? 11211 : ports[below(sizeof ports / sizeof *ports)];
}

static uint32_t choose_weight(int length, uint32_t large)
{
	switch (length % 4) {
	case 0:
		return below(6); /* 0 counts as 1 */
	case 1:
		return 1 + (1 << below(20)); /* some are too light for a point */
	case 2:
		return any();
	default: /* all the same, which a float and their sum as a float are not quite */
		return large;
	}
}

/* Two servers with an equal point, to which 9 of 1,000 keys belong. */
static void write_equal_points(memcached_st *client)
{
	check(memcached_server_add_with_weight(client, "cache1221", 11211, 1));
	check(memcached_server_add_with_weight(client, "cache371", 11211, 1));
	printf("{\"Host\": \"cache1221\", \"Port\": 11211, \"Weight\": 1}, "
	       "{\"Host\": \"cache371\", \"Port\": 11211, \"Weight\": 1}");
}

static void write_list(int length, int weighted)
{
	memcached_st *client = memcached_create(NULL);
	uint32_t large = any();

	check(memcached_behavior_set(client, MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED, 1));
	printf("{\"Servers\": [");
	if (length == 2 && !weighted)
		write_equal_points(client);
	else
		for (int id = 1; id <= length; id++) {
			if (id > 1)
				printf(", ");
			write_server(client, id, choose_port(), weighted ? choose_weight(length, large) : 1);
		}
	printf("], \"Picks\": [");
	for (int i = 0; i < KEYS; i++) {
		/* A number with leading zeros, of 1 to 250 bytes. */
		char key[256];
		int size = sprintf(key, "%0*d", 1 + i % 250, length * KEYS + i);

		printf(i ? ", %u" : "%u", memcached_generate_hash(client, key, size));
	}
	printf("]}\n");
	memcached_free(client);
}

int main(void)
{
	for (int length = 1; length <= LENGTHS; length++) {
		write_list(length, 0);
		write_list(length, 1);
	}
	return 0;
}
