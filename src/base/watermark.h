/*
 * Watermarks: who may still have some when a resource (free buckets, journal space) gets scarce. A request is granted
 * what requests with lower watermarks are refused, so that work which frees the resource can always go on (07 §13).
 */
#ifndef KILN_BASE_WATERMARK_H
#define KILN_BASE_WATERMARK_H

enum watermark {
	WATERMARK_STRIPE,	/* background moves */
	WATERMARK_NORMAL,	/* ordinary work */
	WATERMARK_COPYGC,	/* moving data to free buckets */
	WATERMARK_BTREE,	/* btree nodes for ordinary updates */
	WATERMARK_BTREE_COPYGC, /* btree nodes for copygc's updates */
	WATERMARK_RECLAIM,	/* journal reclaim and interior updates */
	WATERMARK_NR,
};

#endif
