"""Write the Grafana dashboard: `python deploy/dashboard.py > deploy/grafana/relay.json`. A test compares."""

import json
from typing import Any

BY = 'provider=~"$provider"'
PANELS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    # title, kind, unit, [(expression, legend)]
    ("Ready", "stat", "bool_yes_no", [("relay_ready", "")]),
    ("Redis up", "stat", "bool_yes_no", [("relay_redis_up", "")]),
    ("Connections up", "stat", "short", [("sum(relay_connection_up)", "up"), ("count(relay_connection_up)", "of")]),
    ("Messages/s", "stat", "short", [("sum(rate(relay_messages_published_total[1m]))", "")]),
    ("Stale topics", "stat", "short", [("sum(relay_topics_stale)", "")]),
    ("Waiting", "stat", "bytes", [("relay_outbox_bytes", "")]),
    ("Messages out by provider", "timeseries", "mps", [
        (f"sum by (provider) (rate(relay_messages_published_total{{{BY}}}[1m]))", "{{provider}}")]),
    ("Entries by channel", "timeseries", "mps", [
        (f"sum by (channel) (rate(relay_messages_numbered_total{{{BY}}}[1m]))", "{{channel}}")]),
    ("Frames in", "timeseries", "pps", [
        (f"sum by (provider) (rate(relay_frames_received_total{{{BY}}}[1m]))", "{{provider}}")]),
    ("Bytes in", "timeseries", "Bps", [
        (f"sum by (provider) (rate(relay_received_bytes_total{{{BY}}}[1m]))", "{{provider}}")]),
    ("Connection state", "state-timeline", "short", [
        (f"relay_connection_up{{{BY}}}", "{{provider}}/{{connection}}")]),
    ("Why sessions ended", "timeseries", "short", [
        (f"sum by (provider, code) (increase(relay_sessions_ended_total{{{BY}}}[5m]))", "{{provider}} {{code}}")]),
    ("Gaps and missing messages", "timeseries", "short", [
        (f"sum by (provider) (increase(relay_gaps_total{{{BY}}}[5m]))", "{{provider}} gaps"),
        (f"sum by (provider) (increase(relay_missing_messages_total{{{BY}}}[5m]))", "{{provider}} missing")]),
    ("Dropped and rejected", "timeseries", "short", [
        (f"sum by (provider, reason) (increase(relay_messages_dropped_total{{{BY}}}[5m]))", "{{provider}} {{reason}}"),
        (f"sum by (provider, reason) (increase(relay_rejects_total{{{BY}}}[5m]))", "{{provider}} reject {{reason}}")]),
    ("Stale topics by provider", "timeseries", "short", [(f"relay_topics_stale{{{BY}}}", "{{provider}}")]),
    ("Age of the last message", "timeseries", "s", [
        (f"time() - relay_last_message_timestamp_seconds{{{BY}}}", "{{provider}}")]),
    ("Receipt to stored", "timeseries", "s", [
        ("histogram_quantile(0.5, sum by (le) (rate(relay_receipt_to_stored_seconds_bucket[1m])))", "p50"),
        ("histogram_quantile(0.99, sum by (le) (rate(relay_receipt_to_stored_seconds_bucket[1m])))", "p99")]),
    ("Event to receipt, p50", "timeseries", "s", [
        (f"histogram_quantile(0.5, sum by (le, provider) (rate(relay_event_to_receipt_seconds_bucket{{{BY}}}[5m])))",
         "{{provider}}")]),
    ("Redis calls", "timeseries", "s", [
        ("histogram_quantile(0.5, sum by (le) (rate(relay_redis_call_seconds_bucket[1m])))", "p50"),
        ("histogram_quantile(0.99, sum by (le) (rate(relay_redis_call_seconds_bucket[1m])))", "p99")]),
    ("Entries a call", "timeseries", "short", [
        ("rate(relay_redis_batch_entries_sum[1m]) / rate(relay_redis_batch_entries_count[1m])", "mean")]),
    ("Outbox", "timeseries", "bytes", [
        ("relay_outbox_bytes", "waiting"), ("relay_outbox_bytes_max", "bound"), ("relay_spool_bytes", "spool")]),
    ("Redis errors", "timeseries", "short", [
        ("sum by (reaction) (increase(relay_redis_errors_total[5m]))", "{{reaction}}")]),
    ("Loop lag", "timeseries", "s", [
        ("histogram_quantile(0.99, sum by (le) (rate(relay_loop_lag_seconds_bucket[1m])))", "p99")]),
    ("CPU and memory", "timeseries", "percentunit", [
        ("rate(process_cpu_seconds_total{job=\"relay\"}[1m])", "cpu")]),
    ("Memory", "timeseries", "bytes", [("process_resident_memory_bytes{job=\"relay\"}", "resident")]),
    ("Quota left", "timeseries", "short", [(f"relay_quota_remaining{{{BY}}}", "{{provider}}")]),
    ("Conservation: always 0", "timeseries", "short", [
        ("relay_conservation_frames", "{{provider}} frames"), ("relay_conservation_messages", "{{provider}}"),
        ("relay_conservation_entries", "entries")]),
    ("Reloads", "timeseries", "short", [("sum by (result) (increase(relay_reloads_total[5m]))", "{{result}}")]),
]  # fmt: skip
SOURCE = {"type": "prometheus", "uid": "prometheus"}


def dashboard() -> dict[str, Any]:
    panels, x, y = [], 0, 0
    for number, (title, kind, unit, targets) in enumerate(PANELS, 1):
        width, height = (4, 4) if kind == "stat" else (12, 8)
        if x + width > 24:
            x, y = 0, y + (4 if PANELS[number - 2][1] == "stat" else 8)
        panels.append(
            {
                "id": number,
                "title": title,
                "type": kind,
                "datasource": SOURCE,
                "gridPos": {"x": x, "y": y, "w": width, "h": height},
                "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                "targets": [
                    {"refId": chr(65 + i), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
                    for i, (expr, legend) in enumerate(targets)
                ],
            }
        )
        x += width
    return {
        "uid": "relay",
        "title": "Relay",
        "tags": ["relay"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "5s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "provider",
                    "type": "query",
                    "datasource": SOURCE,
                    "query": {"query": "label_values(relay_messages_published_total, provider)", "refId": "p"},
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                }
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
