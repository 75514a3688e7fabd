/*
 * Progress of long work: one line on a terminal, redrawn a few times a second by its own task, with bytes, percentage,
 * rate and time left.
 *
 * The rate is an exponential moving average over about ten seconds, so that the time left neither jumps nor lags.
 */
#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/strbuf.h"
#include "base/sync.h"
#include "tool/tool.h"

static const uint64_t redraw_ns = 200 * 1000 * 1000;
static const double rate_window_s = 10;

struct progress {
	const char *what;
	struct task *task;
	struct mutex lock;
	struct waitq changed;
	bool is_ended, is_drawn;
	uint64_t total_bytes, bytes, files;
	uint64_t last_ns, last_bytes, start_ns;
	double rate; /* bytes a second */
};

static void add_duration(struct strbuf *out, uint64_t seconds)
{
	if (seconds >= 3600)
		strbuf_printf(out, "%u:%02u:%02u", (unsigned)(seconds / 3600), (unsigned)(seconds / 60 % 60),
			      (unsigned)(seconds % 60));
	else
		strbuf_printf(out, "%u:%02u", (unsigned)(seconds / 60), (unsigned)(seconds % 60));
}

static void update_rate(struct progress *p, uint64_t now)
{
	double s = (double)(now - p->last_ns) / 1e9;
	if (s <= 0)
		return;

	double rate = (double)(p->bytes - p->last_bytes) / s;
	double weight = p->last_ns == p->start_ns ? 1 : 1 - exp(-s / rate_window_s);
	p->rate += weight * (rate - p->rate);
	p->last_ns = now;
	p->last_bytes = p->bytes;
}

static unsigned terminal_width(void)
{
	struct winsize w;

	return !ioctl(STDERR_FILENO, TIOCGWINSZ, &w) && w.ws_col ? w.ws_col : 80;
}

static void draw(struct progress *p)
{
	char buf[256];
	struct strbuf line = strbuf_fixed(buf, sizeof(buf));

	update_rate(p, clock_monotonic_ns());
	strbuf_printf(&line, "%s: ", p->what);
	strbuf_add_size(&line, p->bytes);
	if (p->total_bytes) {
		strbuf_add(&line, " of ");
		strbuf_add_size(&line, p->total_bytes);
		strbuf_printf(&line, " (%u%%)",
			      (unsigned)(100.0 * (double)min(p->bytes, p->total_bytes) / (double)p->total_bytes));
	}
	if (p->files)
		strbuf_printf(&line, ", %llu files", (unsigned long long)p->files);
	strbuf_add(&line, ", ");
	strbuf_add_size(&line, (uint64_t)p->rate);
	strbuf_add(&line, "/s");
	if (p->total_bytes > p->bytes && p->rate > 1) {
		strbuf_add(&line, ", left ");
		add_duration(&line, (uint64_t)((double)(p->total_bytes - p->bytes) / p->rate));
	}
	fprintf(stderr, "\r%.*s\033[K", (int)terminal_width() - 1, buf);
	p->is_drawn = true;
}

static void erase(struct progress *p)
{
	if (p->is_drawn)
		fputs("\r\033[K", stderr);
	p->is_drawn = false;
}

static void redraw_task(void *arg)
{
	struct progress *p = arg;

	mutex_lock(&p->lock);
	while (!p->is_ended) {
		waitq_wait_until(&p->changed, &p->lock, clock_monotonic_ns() + redraw_ns);
		if (!p->is_ended)
			draw(p);
	}
	erase(p);
	mutex_unlock(&p->lock);
}

struct progress *progress_start(const char *what, uint64_t total_bytes, bool is_forced)
{
	if (!is_forced && !isatty(STDERR_FILENO))
		return NULL;

	struct progress *p = calloc(1, sizeof(*p));
	if (!p)
		return NULL;
	p->what = what;
	p->total_bytes = total_bytes;
	p->start_ns = p->last_ns = clock_monotonic_ns();
	mutex_init(&p->lock);
	waitq_init(&p->changed);
	if (task_start(&p->task, "progress", redraw_task, p)) {
		waitq_destroy(&p->changed);
		mutex_destroy(&p->lock);
		free(p);
		return NULL;
	}
	return p;
}

void progress_add(struct progress *p, uint64_t bytes, uint64_t files)
{
	if (!p)
		return;
	mutex_lock(&p->lock);
	p->bytes += bytes;
	p->files += files;
	mutex_unlock(&p->lock);
}

void progress_hide(struct progress *p)
{
	if (!p)
		return;
	mutex_lock(&p->lock);
	erase(p);
	mutex_unlock(&p->lock);
}

void progress_end(struct progress *p)
{
	if (!p)
		return;
	mutex_lock(&p->lock);
	p->is_ended = true;
	waitq_wake_all(&p->changed);
	mutex_unlock(&p->lock);
	task_join(p->task);
	waitq_destroy(&p->changed);
	mutex_destroy(&p->lock);
	free(p);
}
