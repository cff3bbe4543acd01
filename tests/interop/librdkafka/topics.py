"""What kafka-topics.sh does for librdkafka's tests (--create, --alter, --delete), through kafka-python."""

import argparse

from kafka.admin import KafkaAdminClient


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    for name in ("--create", "--alter", "--delete"):
        action.add_argument(name, action="store_true")
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, default=-1)
    parser.add_argument("--replication-factor", type=int, default=-1)
    parser.add_argument("--config", action="append", default=[])
    args = parser.parse_args()

    admin = KafkaAdminClient(bootstrap_servers=args.bootstrap_server)
    if args.create:
        configs = dict(pair.split("=", 1) for pair in args.config)
        options = {"num_partitions": args.partitions, "replication_factor": args.replication_factor}
        admin.create_topics({args.topic: options | {"configs": configs}})
    elif args.alter:
        admin.create_partitions({args.topic: args.partitions})
    else:
        admin.delete_topics([args.topic])
    admin.close()


if __name__ == "__main__":
    main()
