// Reads partitions with kafkajs: `node read.js ORDER`, see ../../gaps.py for the order and the answer.
const { Kafka, logLevel } = require('kafkajs')

const order = JSON.parse(process.argv[2])
const kafka = new Kafka({ brokers: [order.bootstrap], logLevel: logLevel.ERROR, connectionTimeout: 30_000 })

async function main() {
  // There is no reading without a group in kafkajs; the starts are what that group has committed.
  const consumer = kafka.consumer({
    groupId: order.group,
    maxBytesPerPartition: order.max_bytes,
    maxWaitTimeInMs: 200,
  })
  consumer.on(consumer.events.CRASH, ({ payload }) => {
    console.error(payload.error)
    if (!payload.restart) process.exit(1)
  })
  await consumer.connect()
  await consumer.subscribe({ topics: [order.topic] })
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message }) => {
      const told = [partition, Number(message.offset), message.key.toString(), message.value.length]
      process.stdout.write(JSON.stringify(told) + '\n')
    },
  })
  process.stdin.resume()
  process.stdin.on('end', async () => {
    await consumer.disconnect()
    process.exit(0)
  })
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
