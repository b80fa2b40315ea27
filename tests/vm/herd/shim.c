/*
 * shim.c: lets HERD run on RoCE. HERD addresses its peers as on InfiniBand, by LID; on an Ethernet port an address needs a GID. Loaded
 * before libibverbs (LD_PRELOAD), this gives every address without one the port's own GID: good where all of HERD and its
 * client are on one host.
 *
 *     cc -shared -fPIC -o herd_shim.so shim.c -libverbs -ldl
 */
#if __has_include(<infiniband/verbs.h>) /* else there is nothing to be run on, and nothing to be linted */

#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GID_INDEX 1 /* RoCE v2 over IPv4, on rxe */

static void *real(const char *name) {
    void *found = dlvsym(RTLD_NEXT, name, "IBVERBS_1.1");
    if (found == NULL) {
        fprintf(stderr, "herd_shim: no %s\n", name);
        abort();
    }
    return found;
}

static void add_gid(struct ibv_context *context, struct ibv_ah_attr *address) {
    if (address->is_global) return;
    memset(&address->grh, 0, sizeof address->grh);
    if (ibv_query_gid(context, address->port_num, GID_INDEX, &address->grh.dgid) != 0) {
        fprintf(stderr, "herd_shim: port %u has no GID %d\n", address->port_num, GID_INDEX);
        abort();
    }
    address->is_global = 1;
    address->dlid = 0;
    address->grh.sgid_index = GID_INDEX;
    address->grh.hop_limit = 64;
}

int ibv_modify_qp(struct ibv_qp *pair, struct ibv_qp_attr *to, int mask) {
    int (*modify)(struct ibv_qp *, struct ibv_qp_attr *, int);
    void *symbol = real("ibv_modify_qp");
    memcpy(&modify, &symbol, sizeof modify);
    if (mask & IBV_QP_AV) add_gid(pair->context, &to->ah_attr);
    return modify(pair, to, mask);
}

struct ibv_ah *ibv_create_ah(struct ibv_pd *domain, struct ibv_ah_attr *address) {
    struct ibv_ah *(*create)(struct ibv_pd *, struct ibv_ah_attr *);
    void *symbol = real("ibv_create_ah");
    memcpy(&create, &symbol, sizeof create);
    add_gid(domain->context, address);
    return create(domain, address);
}

#endif
