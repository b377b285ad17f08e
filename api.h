/*
 * api.h: a request in, the reply out: routes, authentication, the rules of the endpoints.
 */
#ifndef API_H
#define API_H

#include "access.h"
#include "http.h"
#include "metrics.h"
#include "store.h"

/* The longest body of a reply, in bytes: that of a method call's error repeats the call's ID once
 * and an unknown method's name twice, every byte as up to seven (\\uXXXX, JSON in a string of
 * JSON). The one of /metrics is not in api_reply, and has METRICS_TEXT_BYTES. */
#define API_MAX_BODY_BYTES (3 * 7 * ID_MAX_BYTES + 512)

struct api {
    const struct access *access; /* owned by the caller, who may swap it between two calls */
    struct store *store;         /* the caller's */
    struct slice origins;        /* whose scripts may read replies: "*", or origins in lower case
                                    with commas between them; empty: nobody's */
    struct metrics *metrics;     /* the caller's; NULL: there is no /metrics */
    struct slice user; /* after api_answer: who has proved to have sent the request, or empty */
};

struct api_reply {
    struct http_reply http; /* its body is constant, in .scratch or in the metrics: it lives until
                               the next call */
    uint64_t ticket;  /* what the reply rests on (store_set); 0: nothing, send it at once. If the
                        ticket fails, api_storage_unavailable is the reply instead */
    bool exists;      /* it refuses a set because the room has a key ID, or will have one with the
                        ticket */
    uint8_t endpoint; /* enum metrics_endpoint */
    char scratch[API_MAX_BODY_BYTES];
};

/* Answers a complete request. May read the disk where store_set and store_get may; otherwise never
 * blocks. Always yields a reply; .http.close, .confirm_keep_alive are the caller's to set. */
void api_answer(struct api *api, const struct http_request *request, struct api_reply *reply);

/* Which of api->origins the request comes from, for the reply's .origin: "*" if that is what they
 * are, otherwise the one that the request names, or an empty slice. The request may be one that was
 * refused just now, or NULL where there is none. A browser keeps a reply without it from the script
 * that asked; it does not keep the script from asking, so this is no access control. */
struct slice api_origin(const struct api *api, const struct http_request *request);

/* Whether list may become api->origins once in lower case. */
bool api_is_origin_list(struct slice list);

/* The reply to a request that cannot be answered otherwise: status is the parser's, or 408, or 503
 * for too many connections; why is a few words without quotes or backslashes. */
void api_refuse(int status, const char *why, struct api_reply *reply);

/* The reply to a set whose record could not be written. */
void api_storage_unavailable(struct api_reply *reply);

#endif
