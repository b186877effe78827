// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Lets the guest program call the kernel's own PASID allocator (ioasid, Linux 5.5 to 6.3).
 *
 * On a virtual machine whose VT-d unit offers virtual commands, intel-iommu puts an allocator of its own below ioasid:
 * each ioasid_alloc() and ioasid_free() here is then a command to the host.
 *
 * The program opens /dev/vsva_pasids, writes one struct request and reads one struct reply, as often as it likes. Each
 * open file is an ioasid_set of its own; what it still holds is freed when it is closed. Only root can open it, so
 * requests are checked for mistakes, not for malice.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/ioasid.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/xarray.h>

/* The numbers are the guest program's too (crates/guest/src/pasids.rs). */
enum {
	/* ioasid_alloc(set, id, max, record with value); the reply's id is what it returned. */
	OP_ALLOC = 1,
	/* ioasid_free(id) of a number that this file holds. */
	OP_FREE = 2,
	/* ioasid_find(set, id); the reply's value is read through the pointer that it returned. */
	OP_FIND = 3,
	/* Maps the registers of the unit at physical address value, for OP_COMMAND. */
	OP_REGISTERS = 4,
	/* Writes value to the virtual command register past the kernel; the reply's value is the response register. */
	OP_COMMAND = 5,
};

struct request {
	__u32 op;
	__u32 id;
	__u32 max;
	__u32 reserved;
	__u64 value;
};

struct reply {
	__s32 status;
	__u32 id;
	__u64 value;
};

/* Registers of the virtual command interface, VT-d 3.3 layout. */
#define REGISTERS	0x1000
#define VCMD		0xe00
#define VCRSP		0xe10
#define VCRSP_IP	BIT_ULL(0)
/* A response takes microseconds; a second is a unit that does not answer. */
#define COMMAND_POLLS	1000
#define COMMAND_POLL_US	1000

/* What ioasid keeps as a number's private data. */
struct record {
	ioasid_t id;
	u64 value;
};

struct holder {
	struct mutex lock;
	struct ioasid_set set;
	/* Every number that this file holds, with its record. */
	struct xarray records;
	void __iomem *registers;
	struct reply reply;
	bool replied;
};

static int holder_alloc(struct holder *holder, const struct request *request, struct reply *reply)
{
	struct record *record = kzalloc(sizeof(*record), GFP_KERNEL);
	int error;

	if (!record)
		return -ENOMEM;
	record->value = request->value;
	record->id = ioasid_alloc(&holder->set, request->id, request->max, record);
	reply->id = record->id;
	if (record->id == INVALID_IOASID) {
		kfree(record);
		return 0;
	}
	error = xa_insert(&holder->records, record->id, record, GFP_KERNEL);
	if (error)
		/* The record stays ioasid's: the number is somebody's, and freeing it would hide that. */
		pr_err("number %u cannot be recorded: %d\n", record->id, error);
	return error;
}

static void release_number(struct record *record)
{
	/*
	 * While a number has private data, intel-iommu takes it for one in use ("Cannot free active IOASID") and tells
	 * the host nothing, so that the number would be lost to both. The call waits for readers of the old pointer.
	 */
	if (ioasid_set_data(record->id, NULL))
		pr_err("number %u has no data to clear\n", record->id);
	ioasid_free(record->id);
	kfree(record);
}

static int holder_free(struct holder *holder, const struct request *request)
{
	struct record *record = xa_erase(&holder->records, request->id);

	if (!record)
		return -ENOENT;
	release_number(record);
	return 0;
}

static int holder_find(struct holder *holder, const struct request *request, struct reply *reply)
{
	struct record *found = ioasid_find(&holder->set, request->id, NULL);

	if (IS_ERR(found))
		return PTR_ERR(found);
	if (found != xa_load(&holder->records, request->id)) {
		pr_err("number %u: found %px, which is not its record\n", request->id, found);
		return -EIO;
	}
	if (!found)
		return -ENODATA;
	reply->id = found->id;
	reply->value = found->value;
	return 0;
}

static int holder_registers(struct holder *holder, const struct request *request)
{
	if (holder->registers)
		return -EBUSY;
	holder->registers = ioremap(request->value, REGISTERS);
	return holder->registers ? 0 : -ENOMEM;
}

/* The kernel's own commands must be over: the program sends these when nobody else allocates. */
static int holder_command(struct holder *holder, const struct request *request, struct reply *reply)
{
	unsigned int polls;

	if (!holder->registers)
		return -ENXIO;
	writeq(request->value, holder->registers + VCMD);
	for (polls = 0; polls < COMMAND_POLLS; polls++) {
		reply->value = readq(holder->registers + VCRSP);
		if (!(reply->value & VCRSP_IP))
			return 0;
		usleep_range(COMMAND_POLL_US, 2 * COMMAND_POLL_US);
	}
	pr_err("command %#llx is not answered\n", request->value);
	return -ETIMEDOUT;
}

static int holder_perform(struct holder *holder, const struct request *request, struct reply *reply)
{
	switch (request->op) {
	case OP_ALLOC:
		return holder_alloc(holder, request, reply);
	case OP_FREE:
		return holder_free(holder, request);
	case OP_FIND:
		return holder_find(holder, request, reply);
	case OP_REGISTERS:
		return holder_registers(holder, request);
	case OP_COMMAND:
		return holder_command(holder, request, reply);
	default:
		return -EOPNOTSUPP;
	}
}

static int pasids_open(struct inode *inode, struct file *file)
{
	struct holder *holder = kzalloc(sizeof(*holder), GFP_KERNEL);

	if (!holder)
		return -ENOMEM;
	mutex_init(&holder->lock);
	xa_init(&holder->records);
	file->private_data = holder;
	return 0;
}

static ssize_t pasids_write(struct file *file, const char __user *from, size_t size, loff_t *offset)
{
	struct holder *holder = file->private_data;
	struct request request;

	if (size != sizeof(request))
		return -EINVAL;
	if (copy_from_user(&request, from, sizeof(request)))
		return -EFAULT;
	if (request.reserved)
		return -EINVAL;
	mutex_lock(&holder->lock);
	memset(&holder->reply, 0, sizeof(holder->reply));
	holder->reply.status = holder_perform(holder, &request, &holder->reply);
	holder->replied = true;
	mutex_unlock(&holder->lock);
	return size;
}

static ssize_t pasids_read(struct file *file, char __user *to, size_t size, loff_t *offset)
{
	struct holder *holder = file->private_data;
	struct reply reply;
	bool replied;

	if (size != sizeof(reply))
		return -EINVAL;
	mutex_lock(&holder->lock);
	reply = holder->reply;
	replied = holder->replied;
	holder->replied = false;
	mutex_unlock(&holder->lock);
	if (!replied)
		return -ENODATA;
	return copy_to_user(to, &reply, sizeof(reply)) ? -EFAULT : size;
}

static int pasids_release(struct inode *inode, struct file *file)
{
	struct holder *holder = file->private_data;
	struct record *record;
	unsigned long id, left = 0;

	xa_for_each(&holder->records, id, record) {
		xa_erase(&holder->records, id);
		release_number(record);
		left++;
	}
	if (left)
		pr_info("%lu numbers freed for a program that did not\n", left);
	if (holder->registers)
		iounmap(holder->registers);
	xa_destroy(&holder->records);
	kfree(holder);
	return 0;
}

static const struct file_operations pasids_operations = {
	.owner = THIS_MODULE,
	.open = pasids_open,
	.read = pasids_read,
	.write = pasids_write,
	.release = pasids_release,
	.llseek = no_llseek,
};

static struct miscdevice pasids_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = KBUILD_MODNAME,
	.fops = &pasids_operations,
	.mode = 0600,
};

module_misc_device(pasids_device);

MODULE_DESCRIPTION("The kernel's PASID allocator, for the program of vsva's guest");
MODULE_LICENSE("Dual MIT/GPL");
