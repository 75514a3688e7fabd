/* What devices that wrap another one have in common. Private to the device room. */
#ifndef KILN_DEVICE_WRAP_H
#define KILN_DEVICE_WRAP_H

#include "device/device.h"

/* Owns `below`. First member of the wrapper's own struct. */
struct wrap_device {
	struct device dev;
	struct device *below;
};

/* Looks like the device below, with its own statistics. */
void wrap_init(struct wrap_device *wrap, const struct device_ops *ops, struct device *below);

/* For device_ops: waits for the device below. */
bool wrap_poll(struct device *dev, struct io_group *group, unsigned wait_nr);

/* The first part of @child becomes that of @parent, aimed at the device below. */
void wrap_io_init(struct device_io *child, const struct device_io *parent, struct wrap_device *wrap);

#endif
