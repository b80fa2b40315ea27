/*
 * verbs_library.h: the functions of libibverbs that are not inline, looked up when they are first wanted, so that
 * neither the package nor a node on another fabric needs the library.
 */
#ifndef MUSIDECAR_VERBS_LIBRARY_H
#define MUSIDECAR_VERBS_LIBRARY_H

#if defined(__has_include)
#if __has_include(<infiniband/verbs.h>)
#define VERBS_BUILT 1
#endif
#endif

#ifdef VERBS_BUILT
#include <infiniband/verbs.h>
#include <stdbool.h>

/* verbs.h redefines these as macros. */
#undef ibv_reg_mr
#undef ibv_query_port

struct verbs_library {
    struct ibv_device **(*get_device_list)(int *count);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attributes);
    int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attributes);
    int (*query_gid)(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid);
    struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
    int (*dealloc_pd)(struct ibv_pd *domain);
    struct ibv_mr *(*reg_mr)(struct ibv_pd *domain, void *address, size_t length, int access);
    int (*dereg_mr)(struct ibv_mr *region);
    struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
    int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
    struct ibv_cq *(*create_cq)(struct ibv_context *context, int entries, void *of, struct ibv_comp_channel *channel, int vector);
    int (*destroy_cq)(struct ibv_cq *queue);
    int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **queue, void **of);
    void (*ack_cq_events)(struct ibv_cq *queue, unsigned int count);
    struct ibv_qp *(*create_qp)(struct ibv_pd *domain, struct ibv_qp_init_attr *attributes);
    int (*modify_qp)(struct ibv_qp *pair, struct ibv_qp_attr *attributes, int mask);
    int (*destroy_qp)(struct ibv_qp *pair);
    int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
    void (*ack_async_event)(struct ibv_async_event *event);
};

/* NULL when the library is not there or lacks something; `why` says what, and the remedy. Any thread. */
const struct verbs_library *verbs_library(char *why, uint32_t why_bytes);
#endif

#endif
