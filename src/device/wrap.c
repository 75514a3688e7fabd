/* What devices that wrap another one have in common. */
#include "device/wrap.h"

#include <string.h>

#include "base/util.h"

void wrap_init(struct wrap_device *wrap, const struct device_ops *ops, struct device *below)
{
	wrap->below = below;
	wrap->dev = (struct device){
		.ops = ops,
		.size_bytes = below->size_bytes,
		.logical_block_bytes = below->logical_block_bytes,
		.io_align_bytes = below->io_align_bytes,
		.mem_align_bytes = below->mem_align_bytes,
		.is_readonly = below->is_readonly,
		.is_direct = below->is_direct,
	};
	memcpy(wrap->dev.name, below->name, sizeof(wrap->dev.name));
}

bool wrap_poll(struct device *dev, struct io_group *group, unsigned wait_nr)
{
	struct device *below = container_of(dev, struct wrap_device, dev)->below;

	return below->ops->poll && below->ops->poll(below, group, wait_nr);
}

void wrap_io_init(struct device_io *child, const struct device_io *parent, struct wrap_device *wrap)
{
	*child = (struct device_io){
		.op = parent->op,
		.dev = wrap->below,
		.offset_bytes = parent->offset_bytes,
		.iov = parent->iov,
		.iov_nr = parent->iov_nr,
		.len_bytes = parent->len_bytes,
		.may_be_cached = parent->may_be_cached,
	};
}
