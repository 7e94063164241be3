// metrics_users.go has the families with a series for each user. It is apart from
// metrics.go because they alone grow with a box, to eleven series a user, and so do
// not come through the library's registry: that writes each to a channel, hashes and
// checks its labels, and sorts them all, at every scrape. Here they lie in order
// already, and their labels were checked when they were made. What is counted, and how
// it is written, is the library's all the same.

package main

import (
	"io"
	"math"
	"sort"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// userCounters is one family of counters whose last label is a user's name, unless
// no label is to name one.
type userCounters struct {
	name, help string
	vec        *prometheus.CounterVec // which is in no registry

	mu     mutex
	series []userSeries // in the order that a scrape has: by the values of their labels
}

type userSeries struct {
	counter prometheus.Counter
	labels  []*dto.LabelPair // as the counter writes them, by name
}

// newUserCounters makes a family. The labels are in the order of the alphabet, as those
// of every series are in a scrape.
func newUserCounters(name, help string, labels ...string) *userCounters {
	return &userCounters{name: name, help: help, vec: prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)}
}

// with is the counter with these values of the labels.
func (c *userCounters) with(values ...string) prometheus.Counter {
	c.mu.Lock()
	defer c.mu.Unlock()
	found := false
	at := sort.Search(len(c.series), func(i int) bool {
		for n, l := range c.series[i].labels {
			if v := l.GetValue(); v != values[n] {
				return v > values[n]
			}
		}
		found = true
		return true
	})
	if !found {
		counter := c.vec.WithLabelValues(values...)
		var written dto.Metric
		counter.Write(&written)
		c.series = append(c.series, userSeries{})
		copy(c.series[at+1:], c.series[at:])
		c.series[at] = userSeries{counter, written.Label}
	}
	return c.series[at].counter
}

// gather is the family as a scrape has it, without a metric perhaps. Those of users who
// are none any more end here, for their names would else stay until a restart, however
// often users come and go. isUser may be nil, and must not count anything.
func (c *userCounters) gather(isUser func(string) bool) *dto.MetricFamily {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.series[:0]
	for _, s := range c.series {
		if isUser == nil || isUser(s.labels[len(s.labels)-1].GetValue()) {
			kept = append(kept, s)
			continue
		}
		values := make([]string, len(s.labels))
		for i, l := range s.labels {
			values[i] = l.GetValue()
		}
		c.vec.DeleteLabelValues(values...)
	}
	clear(c.series[len(kept):])
	c.series = kept
	family, metrics := newFamily(c.name, c.help, dto.MetricType_COUNTER, len(kept))
	for i := range metrics {
		kept[i].counter.Write(&metrics[i])
		family.Metric = append(family.Metric, &metrics[i])
	}
	return family
}

// newFamily is a family, and so many metrics in one piece that it may take.
//
//go:noinline
func newFamily(name, help string, kind dto.MetricType, n int) (*dto.MetricFamily, []dto.Metric) {
	return &dto.MetricFamily{Name: &name, Help: &help, Type: &kind, Metric: make([]*dto.Metric, 0, n)}, make([]dto.Metric, n)
}

// userFamilies is all of these families.
func (m *metrics) userFamilies() (families []*dto.MetricFamily) {
	isUser := m.src.IsUser
	if m.src.Anonymous {
		isUser = nil // there is no name to ask about
	}
	families = m.quotaFamilies() // first, as it makes counters of new users
	for _, c := range [...]*userCounters{m.transfers, m.transferBytes, m.quotaRejects} {
		families = append(families, c.gather(isUser))
	}
	return families
}

// quotaFamilies shows who may store what and does: each user, or all together.
func (m *metrics) quotaFamilies() (families []*dto.MetricFamily) {
	if m.src.Usage == nil {
		return nil
	}
	defer func() {
		if recover() != nil {
			m.panics.Inc() // the counters are as good as before
		}
	}()
	all := m.src.Usage()
	if m.src.Anonymous {
		sum := userUsage{Known: true}
		for _, u := range all {
			sum.QuotaBytes += u.QuotaBytes
			sum.QuotaFiles += u.QuotaFiles
			if u.Known {
				sum.UsedBytes += u.UsedBytes
				sum.UsedFiles += u.UsedFiles
			}
		}
		all = []userUsage{sum}
	}
	// One label for all the series of a user.
	key, names := "user", make([]string, len(all))
	pairs, labels := make([]dto.LabelPair, len(all)), make([]*dto.LabelPair, len(all))
	for i := range all {
		m.quotaRejects.with(m.labels(all[i].Name)...) // from 0 on, so that increase() sees the first one
		names[i] = metricLabel(all[i].Name)
		pairs[i].Name, pairs[i].Value = &key, &names[i]
		labels[i] = &pairs[i]
	}
	for what, f := range [...]struct{ name, help string }{
		{"berth_quota_bytes", "Bytes the user may store; 0 means no limit."},
		{"berth_quota_files", "Files the user may store; 0 means no limit."},
		{"berth_quota_used_bytes", "Bytes the user's files take."},
		{"berth_quota_used_files", "Files the user has stored."},
		{"berth_quota_rotates", "Always 1, for users whose full home makes room by itself."},
	} {
		if what == 4 && m.src.Anonymous {
			break
		}
		family, metrics := newFamily(f.name, f.help, dto.MetricType_GAUGE, len(all))
		gauges, values := make([]dto.Gauge, len(all)), make([]float64, len(all))
		for i := range all {
			u := &all[i]
			value, told := u.QuotaBytes, true
			switch what {
			case 1:
				value = u.QuotaFiles
			case 2:
				value, told = u.UsedBytes, u.Known
			case 3:
				value, told = u.UsedFiles, u.Known
			case 4:
				value, told = 1, u.Rotates
			}
			if !told {
				continue
			}
			values[i] = float64(value)
			gauges[i].Value = &values[i]
			metrics[i].Gauge = &gauges[i]
			if !m.src.Anonymous {
				metrics[i].Label = labels[i : i+1 : i+1]
			}
			family.Metric = append(family.Metric, &metrics[i])
		}
		families = append(families, family)
	}
	return families
}

// writeText writes a family as expfmt.MetricFamilyToText does, byte for byte, and several
// times as fast: it makes pieces of text, in scratch, where that makes a call for each
// brace and comma.
func writeText(w io.Writer, scratch *[]byte, family *dto.MetricFamily) (err error) {
	name := family.GetName()
	b := appendText((*scratch)[:0], "# HELP ", name, " ")
	b = appendText(appendEscaped(b, family.GetHelp(), false), "\n# TYPE ", name, " ", strings.ToLower(family.GetType().String()), "\n")
	for _, m := range family.GetMetric() {
		sample := func(suffix, key string, at, value float64) {
			b = appendText(b, name, suffix)
			between, end := "{", ""
			for _, l := range m.GetLabel() {
				b = appendText(b, between, l.GetName(), `="`)
				b = appendEscaped(b, l.GetValue(), true)
				between, end = `",`, `"}`
			}
			if key != "" {
				b = appendText(b, between, key, `="`)
				b = strconv.AppendFloat(b, at, 'g', -1, 64)
				end = `"}`
			}
			b = appendText(b, end, " ")
			b = appendText(strconv.AppendFloat(b, value, 'g', -1, 64), "\n")
		}
		if h := m.GetHistogram(); h != nil {
			all := float64(h.GetSampleCount())
			for _, bucket := range h.GetBucket() {
				sample("_bucket", "le", bucket.GetUpperBound(), float64(bucket.GetCumulativeCount()))
			}
			sample("_bucket", "le", math.Inf(1), all)
			sample("_sum", "", 0, h.GetSampleSum())
			sample("_count", "", 0, all)
		} else if s := m.GetSummary(); s != nil {
			for _, q := range s.GetQuantile() {
				sample("", "quantile", q.GetQuantile(), q.GetValue())
			}
			sample("_sum", "", 0, s.GetSampleSum())
			sample("_count", "", 0, float64(s.GetSampleCount()))
		} else {
			sample("", "", 0, m.GetCounter().GetValue()+m.GetGauge().GetValue()) // one of which is nil
		}
		if len(b) >= textChunk {
			if _, err = w.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	*scratch = b
	_, err = w.Write(b)
	return err
}

//go:noinline
func appendText(b []byte, parts ...string) []byte {
	for _, part := range parts {
		b = append(b, part...)
	}
	return b
}

// appendEscaped appends a label's value or, without quotes, a help text.
func appendEscaped(b []byte, s string, quotes bool) []byte {
	for i := range len(s) {
		c := s[i]
		if c == '\n' || c == '\\' || c == '"' && quotes {
			b = append(b, '\\')
		}
		if c == '\n' {
			c = 'n'
		}
		b = append(b, c)
	}
	return b
}
